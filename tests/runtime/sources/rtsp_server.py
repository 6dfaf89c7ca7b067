"""A camera made of GStreamer's RTSP server, for the system's Python: `rtsp_server.py PORT [tcp|udp] [user:password]`.

It serves rtsp://127.0.0.1:PORT/live, 160x120 pixels at 25 frames a second, H.264, and says `ready` once it listens.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

Gst.init(None)
server = GstRtspServer.RTSPServer(service=sys.argv[1], address="127.0.0.1")
factory = GstRtspServer.RTSPMediaFactory(shared=True)
factory.set_launch(
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=25/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 threads=1 ! rtph264pay name=pay0 pt=96 )"
)
if len(sys.argv) > 2:
    factory.set_protocols(getattr(GstRtsp.RTSPLowerTrans, sys.argv[2].upper()))
if len(sys.argv) > 3:
    user, password = sys.argv[3].split(":")
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", user)
    auth = GstRtspServer.RTSPAuth()
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    allowed = "media.factory.access=(boolean)true, media.factory.construct=(boolean)true"
    factory.add_role_from_structure(Gst.Structure.new_from_string(f"{user}, {allowed}"))
server.get_mount_points().add_factory("/live", factory)
if server.attach(None) == 0:
    sys.exit(f"port {sys.argv[1]} is taken")
sys.stdout.write("ready\n")
sys.stdout.flush()
GLib.MainLoop().run()
