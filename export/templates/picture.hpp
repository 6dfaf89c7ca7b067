// Reads a JPEG and resizes it as nnet-edge does: libjpeg-turbo, and Pillow's bilinear filter with antialiasing.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>

struct Picture {
    int height = 0, width = 0;
    std::vector<uint8_t> pixels;  // RGB, row by row
};

struct JpegErrors : jpeg_error_mgr {
    std::jmp_buf back;
};

// 1 (upright) to 8 as EXIF says it; 1 where it says nothing.
inline int orientation_of(const jpeg_decompress_struct& info) {
    for (auto marker = info.marker_list; marker; marker = marker->next) {
        const uint8_t* data = marker->data;
        const size_t size = marker->data_length;
        if (size < 14 || std::string(data, data + 4) != "Exif") continue;
        const bool is_little = data[6] == 'I';
        const auto number = [&](size_t at, int bytes) {
            uint32_t value = 0;
            for (int i = 0; i < bytes; ++i)
                if (at + i < size) value |= uint32_t(data[at + i]) << 8 * (is_little ? i : bytes - 1 - i);
            return value;
        };
        const size_t first = 6 + size_t(number(10, 4));
        for (size_t entry = first + 2; entry < std::min(size, first + 2 + 12 * number(first, 2)); entry += 12)
            if (number(entry, 2) == 0x112) return int(number(entry + 8, 2));
    }
    return 1;
}

// Decodes into `picture`; gives what is wrong with the file, or nullptr.
inline const char* decode(std::FILE* file, Picture& picture) {
    jpeg_decompress_struct info;
    JpegErrors errors;
    const char* volatile fault = nullptr;
    info.err = jpeg_std_error(&errors);
    errors.error_exit = [](j_common_ptr common) { std::longjmp(static_cast<JpegErrors*>(common->err)->back, 1); };
    errors.output_message = [](j_common_ptr) {};
    jpeg_create_decompress(&info);
    if (setjmp(errors.back)) {
        fault = "it is no JPEG, or is damaged";
    } else {
        jpeg_stdio_src(&info, file);
        jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
        jpeg_read_header(&info, TRUE);
        const int orientation = orientation_of(info);
        if (info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK) fault = "it has four inks: save it as RGB";
        else if (orientation >= 2 && orientation <= 8) fault = "EXIF turns it: save it upright";
        else if (uint64_t(info.image_height) * info.image_width > 89478485) fault = "it has too many pixels: shrink it";
        if (!fault) {
            info.out_color_space = JCS_RGB;
            jpeg_start_decompress(&info);
            picture.height = info.output_height, picture.width = info.output_width;
            picture.pixels.resize(size_t(3) * picture.height * picture.width);
            while (info.output_scanline < info.output_height) {
                JSAMPROW row = &picture.pixels[size_t(3) * info.output_scanline * picture.width];
                jpeg_read_scanlines(&info, &row, 1);
            }
            jpeg_finish_decompress(&info);
            if (errors.num_warnings) fault = "it is damaged";
        }
    }
    jpeg_destroy_decompress(&info);
    return fault;
}

// Throws for a file that is absent, damaged, turned by EXIF or of four inks: what is not read as nnet-edge does is not judged.
inline Picture read_jpeg(const std::string& path) {
    std::FILE* file = std::fopen(path.c_str(), "rb");
    if (!file) throw std::runtime_error("it cannot be read");
    Picture picture;
    const char* fault = decode(file, picture);
    std::fclose(file);
    if (fault) throw std::runtime_error(fault);
    return picture;
}

inline Picture cut(const Picture& whole, int top, int left, int height, int width) {
    Picture part{height, width, std::vector<uint8_t>(size_t(3) * height * width)};
    for (int row = 0; row < height; ++row)
        std::copy_n(&whole.pixels[size_t(3) * ((row + top) * whole.width + left)], 3 * width, &part.pixels[size_t(3) * row * width]);
    return part;
}

// One pass along lines of `from` pixels: `step` bytes from pixel to pixel, `line` from line to line. Rounded to 8 bits.
inline void pass(const uint8_t* in, uint8_t* out, int lines, int from, int to, size_t step, size_t line_in, size_t line_out) {
    const double scale = double(from) / to, support = std::max(scale, 1.0);
    for (int place = 0; place < to; ++place) {
        const double centre = (place + 0.5) * scale;
        const int first = std::max(0, int(centre - support + 0.5)), end = std::min(from, int(centre + support + 0.5));
        std::vector<double> shares;
        double sum = 0;
        for (int at = first; at < end; ++at) {
            shares.push_back(std::max(0.0, 1 - std::abs((at - centre + 0.5) / support)));
            sum += shares.back();
        }
        std::vector<int> weights;  // of 2^22
        for (double share : shares) weights.push_back(int(0.5 + share / sum * (1 << 22)));
        for (int line = 0; line < lines; ++line)
            for (int colour = 0; colour < 3; ++colour) {
                int value = 1 << 21;
                for (size_t i = 0; i < weights.size(); ++i) value += weights[i] * in[line * line_in + (first + i) * step + colour];
                out[line * line_out + place * step + colour] = uint8_t(std::clamp(value >> 22, 0, 255));
            }
    }
}

inline Picture resized(const Picture& picture, int height, int width) {
    Picture narrow{picture.height, width, std::vector<uint8_t>(size_t(3) * picture.height * width)};
    pass(picture.pixels.data(), narrow.pixels.data(), picture.height, picture.width, width, 3, size_t(3) * picture.width, size_t(3) * width);
    Picture small{height, width, std::vector<uint8_t>(size_t(3) * height * width)};
    pass(narrow.pixels.data(), small.pixels.data(), width, picture.height, height, size_t(3) * width, 3, 3);
    return small;
}
