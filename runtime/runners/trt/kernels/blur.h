// Enlargement from stride 4 and the Gaussian (sigma 4, symmetric border) as ONE separable filter, and the maximum of each
// strip. Both are linear, so their product is a matrix (256, 64) for 256 rows, with a band of at most 10 numbers a row; it comes
// from `anomaly_map.py` itself, borders included. Rows and columns beside a letterbox are 0.
#pragma once
#include "fuse.h"

namespace nnet {

constexpr int BAND = 10;          // numbers in a row of the matrix that are not 0, at most
// Rows of the anomaly map that a block makes: fewer of wide maps, so that a strip's memory stays below 48 KiB.
constexpr int STRIP_HEIGHT = WIDTH <= 896 ? 32 : WIDTH <= 1472 ? 16 : 8;
constexpr int STRIPS = HEIGHT / STRIP_HEIGHT;
constexpr int STRIP_ROWS = STRIP_HEIGHT == 32 ? 20 : STRIP_HEIGHT == 16 ? 16 : 14;  // of the fused map that a strip needs, at
                                                                                   // most; tables.py checks it and BAND
constexpr int STRIP_THREADS = 256;
constexpr int WIDE_THREADS = 1024;  // of `anomaly_map_wide`: four threads share a column of the strip

// Row i of a matrix holds its values from column `first` on. Same layout as `FILTER` in tables.py.
struct Filter {
    int32_t first_row[HEIGHT];  // down the rows
    float rows[HEIGHT][BAND];
    int32_t first_column[WIDTH];  // across the columns
    float columns[WIDTH][BAND];
};

template <int THREADS>
struct StripMemory {
    float fused[STRIP_ROWS][FUSED_WIDTH];      // 5 KiB at 256
    float filtered[STRIP_HEIGHT][FUSED_WIDTH]; // 8 KiB at 256, after the filter down the rows
    int32_t orders[THREADS];                   // each thread's maximum, 1 KiB of 256 threads
};

static_assert(sizeof(StripMemory<STRIP_THREADS>) <= 48 * 1024, "more shared memory than a block may have");

NNET_HD int first_fused_row(const Filter& filter, int strip) { return filter.first_row[strip * STRIP_HEIGHT]; }

NNET_HD int fused_rows(const Filter& filter, int strip) {
    return filter.first_row[strip * STRIP_HEIGHT + STRIP_HEIGHT - 1] + BAND - first_fused_row(filter, strip);
}

// Phase 1: the part of the fused map that the strip needs.
template <int THREADS>
NNET_HD void fuse_strip(StripMemory<THREADS>& memory, const LayerMaps& maps, const Enlarging& enlarging, const Filter& filter,
                        int image, int strip, int thread) {
    const int top = first_fused_row(filter, strip), rows = fused_rows(filter, strip);
    for (int place = thread; place < rows * FUSED_WIDTH; place += THREADS) {
        const int y = place / FUSED_WIDTH, x = place % FUSED_WIDTH;
        memory.fused[y][x] = fused_at(maps, enlarging, image, top + y, x);
    }
}

// Phase 2: the filter down the rows, the columns still at stride 4.
template <int THREADS>
NNET_HD void filter_down(StripMemory<THREADS>& memory, const Filter& filter, int strip, int thread) {
    const int top = first_fused_row(filter, strip);
    for (int place = thread; place < STRIP_HEIGHT * FUSED_WIDTH; place += THREADS) {
        const int y = place / FUSED_WIDTH, x = place % FUSED_WIDTH;
        const int row = strip * STRIP_HEIGHT + y, start = filter.first_row[row] - top;
        float sum = 0.0f;
        for (int tap = 0; tap < BAND; ++tap) sum += filter.rows[row][tap] * memory.fused[start + tap][x];
        memory.filtered[y][x] = sum;
    }
}

// Phase 3: the filter across the columns; each thread makes a column of the strip, or its share of the rows where there are more
// threads than 256 columns, and keeps its maximum.
template <int THREADS>
NNET_HD void filter_across(StripMemory<THREADS>& memory, const Filter& filter, float* anomaly_maps, int image, int strip,
                           int thread) {
    constexpr int SHARES = THREADS / STRIP_THREADS, ROWS = STRIP_HEIGHT / SHARES;
    int32_t largest = INT32_MIN;
    for (int place = thread; place < WIDTH * SHARES; place += THREADS) {
        const int x = place % WIDTH, top = place / WIDTH * ROWS;
        float values[BAND];
        for (int tap = 0; tap < BAND; ++tap) values[tap] = filter.columns[x][tap];
        const int start = filter.first_column[x];
        float* column = anomaly_maps + (static_cast<int64_t>(image) * HEIGHT + strip * STRIP_HEIGHT) * WIDTH + x;
        for (int y = top; y < top + ROWS; ++y) {
            float sum = 0.0f;
            for (int tap = 0; tap < BAND; ++tap) sum += values[tap] * memory.filtered[y][start + tap];
            column[static_cast<int64_t>(y) * WIDTH] = sum;
            largest = larger(largest, order_of_place(sum));
        }
    }
    memory.orders[thread] = largest;
}

// Phase 4, for distance = 128, 64, ... 1: the maximum of the strip comes to thread 0.
template <int THREADS>
NNET_HD void reduce_orders(StripMemory<THREADS>& memory, int distance, int thread) {
    if (thread < distance) memory.orders[thread] = larger(memory.orders[thread], memory.orders[thread + distance]);
}

template <int THREADS>
NNET_HD void store_peak(const StripMemory<THREADS>& memory, float* peaks, int image, int strip, int thread) {
    if (thread == 0) peaks[image * STRIPS + strip] = float_of_order(memory.orders[0]);
}

}  // namespace nnet
