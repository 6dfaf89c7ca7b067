// A frame under its coloured map, as `runtime/overlay.py` paints it before the outlines.
#pragma once
#include "portable.h"

namespace nnet {

constexpr int OVERLAY_THREADS = 256;

// The map (256, 256) between its pixels, as OpenCV enlarges and shrinks bilinearly (centres of pixels, edges repeated).
NNET_HD float map_between(const float* map, int height, int width, int y, int x) {
    const float row = (y + 0.5f) * (static_cast<float>(SIDE) / height) - 0.5f;
    const float column = (x + 0.5f) * (static_cast<float>(SIDE) / width) - 0.5f;
    const int top = static_cast<int>(floorf(row)), left = static_cast<int>(floorf(column));
    const float down = row - top, across = column - left;
    const int upper = smaller(larger(top, 0), SIDE - 1), lower = smaller(larger(top + 1, 0), SIDE - 1);
    const int first = smaller(larger(left, 0), SIDE - 1), second = smaller(larger(left + 1, 0), SIDE - 1);
    const float above = map[upper * SIDE + first] * (1.0f - across) + map[upper * SIDE + second] * across;
    const float below = map[lower * SIDE + first] * (1.0f - across) + map[lower * SIDE + second] * across;
    return above * (1.0f - down) + below * down;
}

// The place in the colour table: 0 at 0, 255 from `scale_end` (twice the threshold) on.
NNET_HD int colour_index(float value, float scale_end) {
    const float share = value / scale_end;
    const float clipped = share > 0.0f ? (share < 1.0f ? share : 1.0f) : 0.0f;
    return static_cast<int>(rintf(255.0f * clipped));
}

NNET_HD int grey_of_bgr(int blue, int green, int red) {
    return (blue * 3735 + green * 19235 + red * 9798 + (1 << 14)) >> 15;  // OpenCV's 15-bit weights
}

// One pixel of `picture`, uint8 BGR (height, width, 3), of the same pixel of `panel`; `colours` uint8 BGR (256, 3).
NNET_HD void paint_pixel(const uint8_t* panel, const float* map, const uint8_t* colours, float scale_end,
                         float heat_share, int height, int width, int64_t place, uint8_t* picture) {
    const int y = static_cast<int>(place / width), x = static_cast<int>(place % width);
    const uint8_t* colour = colours + 3 * colour_index(map_between(map, height, width, y, x), scale_end);
    const uint8_t* pixel = panel + 3 * place;
    const float rest = (1.0f - heat_share) * grey_of_bgr(pixel[0], pixel[1], pixel[2]);
    for (int channel = 0; channel < 3; ++channel)
        picture[3 * place + channel] = static_cast<uint8_t>(rintf(heat_share * colour[channel] + rest));
}

}  // namespace nnet
