// Enlargement to 256x256 and the Gaussian (sigma 4, symmetric border) as ONE separable filter on the 64x64 map, and the
// maximum of each strip. Both are linear, so their product is a matrix (256, 64) with a band of at most 10 numbers a row; it
// comes from `anomaly_map.py` itself, borders included.
#pragma once
#include "fuse.h"

namespace nnet {

constexpr int BAND = 10;          // numbers in a row of the matrix that are not 0, at most
constexpr int STRIP_HEIGHT = 32;  // rows of the anomaly map that a block makes
constexpr int STRIPS = SIDE / STRIP_HEIGHT;
constexpr int STRIP_ROWS = 20;    // rows of the fused map that a strip needs, at most; tables.py checks both
constexpr int STRIP_THREADS = SIDE;

// Row i of the matrix holds `values[i]` from column `first[i]` on. Same layout as `FILTER` in tables.py.
struct Filter {
    int32_t first[SIDE];
    float values[SIDE][BAND];
};

struct StripMemory {
    float fused[STRIP_ROWS][FUSED_SIDE];      // 5 KiB
    float filtered[STRIP_HEIGHT][FUSED_SIDE]; // 8 KiB, after the filter down the rows
    int32_t orders[STRIP_THREADS];            // each thread's maximum, 1 KiB
};

NNET_HD int first_fused_row(const Filter& filter, int strip) { return filter.first[strip * STRIP_HEIGHT]; }

NNET_HD int fused_rows(const Filter& filter, int strip) {
    return filter.first[strip * STRIP_HEIGHT + STRIP_HEIGHT - 1] + BAND - first_fused_row(filter, strip);
}

// Phase 1: the part of the fused map that the strip needs.
NNET_HD void fuse_strip(StripMemory& memory, const LayerMaps& maps, const Enlarging& enlarging, const Filter& filter,
                        int image, int strip, int thread) {
    const int top = first_fused_row(filter, strip), rows = fused_rows(filter, strip);
    for (int place = thread; place < rows * FUSED_SIDE; place += STRIP_THREADS) {
        const int y = place / FUSED_SIDE, x = place % FUSED_SIDE;
        memory.fused[y][x] = fused_at(maps, enlarging, image, top + y, x);
    }
}

// Phase 2: the filter down the rows, still 64 columns wide.
NNET_HD void filter_down(StripMemory& memory, const Filter& filter, int strip, int thread) {
    const int top = first_fused_row(filter, strip);
    for (int place = thread; place < STRIP_HEIGHT * FUSED_SIDE; place += STRIP_THREADS) {
        const int y = place / FUSED_SIDE, x = place % FUSED_SIDE;
        const int row = strip * STRIP_HEIGHT + y, start = filter.first[row] - top;
        float sum = 0.0f;
        for (int tap = 0; tap < BAND; ++tap) sum += filter.values[row][tap] * memory.fused[start + tap][x];
        memory.filtered[y][x] = sum;
    }
}

// Phase 3: the filter across the columns; each thread makes one column of the strip and keeps its maximum.
NNET_HD void filter_across(StripMemory& memory, const Filter& filter, float* anomaly_maps, int image, int strip,
                           int thread) {
    float values[BAND];
    for (int tap = 0; tap < BAND; ++tap) values[tap] = filter.values[thread][tap];
    const int start = filter.first[thread];
    float* column = anomaly_maps + (static_cast<int64_t>(image) * SIDE + strip * STRIP_HEIGHT) * SIDE + thread;
    int32_t largest = INT32_MIN;
    for (int y = 0; y < STRIP_HEIGHT; ++y) {
        float sum = 0.0f;
        for (int tap = 0; tap < BAND; ++tap) sum += values[tap] * memory.filtered[y][start + tap];
        column[y * SIDE] = sum;
        largest = larger(largest, order_of_place(sum));
    }
    memory.orders[thread] = largest;
}

// Phase 4, for distance = 128, 64, ... 1: the maximum of the strip comes to thread 0.
NNET_HD void reduce_orders(StripMemory& memory, int distance, int thread) {
    if (thread < distance) memory.orders[thread] = larger(memory.orders[thread], memory.orders[thread + distance]);
}

NNET_HD void store_peak(const StripMemory& memory, float* peaks, int image, int strip, int thread) {
    if (thread == 0) peaks[image * STRIPS + strip] = float_of_order(memory.orders[0]);
}

}  // namespace nnet
