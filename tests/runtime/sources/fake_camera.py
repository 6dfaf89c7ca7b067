"""Aravis's fake GigE Vision camera with more pixel formats and features, whose every picture is the same: a ramp of all values.

Run with ADDRESS SERIAL; "ready" on standard output says that it listens.
"""

from __future__ import annotations

import ctypes
import re
import sys
import tempfile
import time

import numpy as np

from nnet_edge.pixel_formats import find_format
from tests.test_pixel_formats import packed

NUMBERS = {  # of GenICam's naming convention
    "Mono10": 0x01100003, "Mono12": 0x01100005, "Mono14": 0x01100025, "Mono10p": 0x010A0046, "Mono12p": 0x010C0047,
    "Mono10Packed": 0x010C0004, "Mono12Packed": 0x010C0006, "BayerRG12": 0x01100011, "BayerRG12p": 0x010C0059,
    "BGR8": 0x02180015, "YUV422_8": 0x02100032,
}  # fmt: skip
ALREADY = {"Mono8": 0x01080001, "BayerRG8": 0x01080009, "RGB8": 0x02180014, "Mono16": 0x01100007}
MORE = """
<Enumeration Name="ExposureAuto"><EnumEntry Name="Off"><Value>0</Value></EnumEntry>
<EnumEntry Name="Continuous"><Value>1</Value></EnumEntry><pValue>MoreA</pValue></Enumeration>
<IntReg Name="MoreA"><Address>0x3f0</Address><Length>4</Length><AccessMode>RW</AccessMode><pPort>Device</pPort>
<Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
<Enumeration Name="UserSetSelector"><EnumEntry Name="Default"><Value>0</Value></EnumEntry>
<EnumEntry Name="UserSet1"><Value>1</Value></EnumEntry><pValue>MoreB</pValue></Enumeration>
<IntReg Name="MoreB"><Address>0x3f4</Address><Length>4</Length><AccessMode>RW</AccessMode><pPort>Device</pPort>
<Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
<Integer Name="Stepped"><pValue>MoreD</pValue><Min>0</Min><Max>64</Max><Inc>8</Inc></Integer>
<IntReg Name="MoreD"><Address>0x3fc</Address><Length>4</Length><AccessMode>RW</AccessMode><pPort>Device</pPort>
<Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
<Command Name="UserSetLoad"><pValue>MoreC</pValue><CommandValue>1</CommandValue></Command>
<IntReg Name="MoreC"><Address>0x3f8</Address><Length>4</Length><AccessMode>RW</AccessMode><pPort>Device</pPort>
<Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>
"""
HEIGHT, WIDTH = 48, 64  # of the region that tests ask for
Fill = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)


def ramp(name: str, height: int, width: int) -> np.ndarray:
    """The values of every picture: they rise along the rows, so that each of the format's comes where there is room."""
    form = find_format(name)
    bits, colours = (form.bits, 3 if form.colours in ("RGB", "BGR") else 1) if form else (8, 2)
    return (37 * np.arange(height * width * colours)) % (1 << bits)


def main(address: str, serial: str) -> None:
    arv = ctypes.CDLL("libaravis-0.8.so.0")
    for name in ("arv_gv_fake_camera_new_full", "arv_gv_fake_camera_get_fake_camera", "arv_fake_camera_new"):
        getattr(arv, name).restype = ctypes.c_void_p
    arv.arv_fake_camera_get_genicam_xml.restype = ctypes.c_char_p
    arv.arv_buffer_get_data.restype = ctypes.c_void_p
    arv.arv_fake_camera_get_payload.restype = ctypes.c_size_t
    plain = ctypes.c_void_p(arv.arv_fake_camera_new(b"plain"))
    xml = arv.arv_fake_camera_get_genicam_xml(plain, ctypes.byref(ctypes.c_size_t())).decode()
    entries = "".join(
        f'<EnumEntry Name="{name}"><Value>{number}</Value></EnumEntry>' for name, number in NUMBERS.items()
    )
    xml = re.sub(r'(<EnumEntry Name="Mono8")', entries + r"\1", xml, count=1)
    xml = xml.replace("</RegisterDescription>", f"{MORE}</RegisterDescription>")
    xml = xml.replace("<pFeature>Debug</pFeature>", "<pFeature>Debug</pFeature><pFeature>ExposureAuto</pFeature>")
    with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
        file.write(xml)
        file.flush()
        camera = ctypes.c_void_p(arv.arv_gv_fake_camera_new_full(address.encode(), serial.encode(), file.name.encode()))
    numbers = {number: name for name, number in (NUMBERS | ALREADY).items()}
    inner = ctypes.c_void_p(arv.arv_gv_fake_camera_get_fake_camera(camera))
    made: dict[str, bytes] = {}

    def fill(buffer: int, data: int, exposure_us: int, gain: int, number: int) -> None:
        place = arv.arv_buffer_get_data(ctypes.c_void_p(buffer), ctypes.byref(ctypes.c_size_t()))
        name = numbers[number]
        if name not in made:
            form, values = find_format(name), ramp(name, HEIGHT, WIDTH)
            is_plain = form is None or form.bits == 8
            made[name] = values.astype(np.uint8).tobytes() if is_plain else packed(values.tolist(), form)
        room = arv.arv_fake_camera_get_payload(inner)
        ctypes.memmove(place, made[name], min(room, len(made[name])))

    callback = Fill(fill)
    arv.arv_fake_camera_set_fill_pattern(inner, callback, None)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    time.sleep(120)  # whoever started it ends it


if __name__ == "__main__":
    main(*sys.argv[1:])
