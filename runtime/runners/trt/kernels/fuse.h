// Equation 8: the product over the scales of (second + weight * first) ** exponent at stride 4, or the sum over the scales of
// (second + weight * first) * exponent, as `anomaly_map.fuse_maps`.
#pragma once
#include "portable.h"

namespace nnet {

constexpr float SMALLEST_DISTANCE = 1e-6f;  // rounding can take a distance of 0 below it, where no power is defined

// The layer maps of a batch, of two branches at most, and how they are fused. Same layout as `MAPS` in tables.py: 88 bytes. An
// address of 0 is a map that the graph does not give; it is left out of its sum, and a scale without any out of the fusion.
struct LayerMaps {
    const void* first[SCALES];  // FP16 or FP32 (N, 1, h, w) with h = HEIGHT / 4, / 8, / 16
    const void* second[SCALES];
    float weights[SCALES];  // of the first
    float exponents[SCALES];
    int32_t half_first, half_second;  // bit i: the map of scale i is FP16
    int32_t is_sum, unused;
};

// Linear interpolation to stride 4 of maps of strides 4, 8 and 16. Same layout as `ENLARGING` in tables.py.
struct Enlarging {
    int32_t top[SCALES][FUSED_HEIGHT];
    float down[SCALES][FUSED_HEIGHT];  // share of the neighbour below
    int32_t left[SCALES][FUSED_WIDTH];
    float across[SCALES][FUSED_WIDTH];  // share of the right neighbour
};

NNET_HD float read_map(const void* maps, bool is_half, int64_t index) {
    return is_half ? float_of_half(static_cast<const uint16_t*>(maps)[index]) : static_cast<const float*>(maps)[index];
}

// first * weight + second of scale number `scale` at one place of the map.
NNET_HD float sum_at(const LayerMaps& maps, int scale, int64_t index) {
    float sum = 0.0f;
    if (maps.first[scale] && maps.weights[scale] > 0.0f)
        sum = maps.weights[scale] * read_map(maps.first[scale], maps.half_first >> scale & 1, index);
    if (maps.second[scale]) sum += read_map(maps.second[scale], maps.half_second >> scale & 1, index);
    return sum;
}

NNET_HD bool takes_part(const LayerMaps& maps, int scale) {
    const bool has_first = maps.first[scale] && maps.weights[scale] > 0.0f;
    return maps.exponents[scale] > 0.0f && (has_first || maps.second[scale]);
}

NNET_HD float enlarged_sum(const LayerMaps& maps, const Enlarging& enlarging, int scale, int image, int y, int x) {
    const int height = FUSED_HEIGHT >> scale, width = FUSED_WIDTH >> scale;
    const int64_t start = static_cast<int64_t>(image) * height * width;
    if (scale == 0) return sum_at(maps, scale, start + y * width + x);
    const int top = enlarging.top[scale][y], left = enlarging.left[scale][x];
    const int bottom = smaller(top + 1, height - 1), right = smaller(left + 1, width - 1);
    const float down = enlarging.down[scale][y], across = enlarging.across[scale][x];
    const float upper = (1.0f - across) * sum_at(maps, scale, start + top * width + left) +
                        across * sum_at(maps, scale, start + top * width + right);
    const float lower = (1.0f - across) * sum_at(maps, scale, start + bottom * width + left) +
                        across * sum_at(maps, scale, start + bottom * width + right);
    return (1.0f - down) * upper + down * lower;
}

NNET_HD float power(float factor, float exponent) {
    if (exponent == 1.0f) return factor;
    if (!is_finite(factor)) return factor;  // the comparison below would lose it
    return powf(factor > SMALLEST_DISTANCE ? factor : SMALLEST_DISTANCE, exponent);
}

// The fused map of one image at row `y` and column `x` of stride 4.
NNET_HD float fused_at(const LayerMaps& maps, const Enlarging& enlarging, int image, int y, int x) {
    float fused = maps.is_sum ? 0.0f : 1.0f;
    for (int scale = 0; scale < SCALES; ++scale) {
        if (!takes_part(maps, scale)) continue;
        const float sum = enlarged_sum(maps, enlarging, scale, image, y, x);
        if (maps.is_sum)
            fused += sum * maps.exponents[scale];
        else
            fused *= power(sum, maps.exponents[scale]);
    }
    return fused;
}

}  // namespace nnet
