// The kernels' arithmetic on the processor: the same phases, thread after thread, with a loop where the GPU has a barrier.
#include "blur.h"
#include "resize.h"
#include "staged.h"
#include <cstddef>

using namespace nnet;

template <int THREADS>
void run_strips(const LayerMaps& maps, const Enlarging& enlarging, const Filter& filter, float* anomaly_maps,
                float* peaks, int batch) {
    for (int image = 0; image < batch; ++image)
        for (int strip = 0; strip < STRIPS; ++strip) {
            StripMemory<THREADS> memory;
            memset(&memory, 0xff, sizeof memory);  // NaN: a place that no phase fills would show
            for (int t = 0; t < THREADS; ++t) fuse_strip(memory, maps, enlarging, filter, image, strip, t);
            for (int t = 0; t < THREADS; ++t) filter_down(memory, filter, strip, t);
            for (int t = 0; t < THREADS; ++t) filter_across(memory, filter, anomaly_maps, image, strip, t);
            for (int distance = THREADS / 2; distance > 0; distance /= 2)
                for (int t = 0; t < THREADS; ++t) reduce_orders(memory, distance, t);
            for (int t = 0; t < THREADS; ++t) store_peak(memory, peaks, image, strip, t);
        }
}

extern "C" {

void preprocess(const FrameView* views, uint8_t* images, int batch) {
    for (int image = 0; image < batch; ++image) {
        const FrameView view = views[image];
        if (view.height == 0) continue;
        for (int block_y = 0; block_y < HEIGHT / TILE_HEIGHT; ++block_y)
            for (int block_x = 0; block_x < WIDTH / TILE_WIDTH; ++block_x) {
                TileMemory memory;
                memset(&memory, 0xee, sizeof memory);  // a place that no phase fills must not be read
                const Tile tile = tile_of(view, block_x, block_y);
                Rgb sums[TILE_THREADS];
                for (Rgb& sum : sums) sum = rounding();
                for (int chunk = 0; chunk < tile.chunks; ++chunk) {
                    for (int thread = 0; thread < TILE_THREADS; ++thread) fill_chunk(memory, view, tile, chunk, thread);
                    for (int thread = 0; thread < TILE_THREADS; ++thread)
                        add_chunk(sums[thread], memory, view, tile, chunk, thread);
                }
                for (int thread = 0; thread < TILE_THREADS; ++thread)
                    store_pixel(images, image, view, sums[thread], tile, thread);
            }
    }
}

void preprocess_staged(const FrameView* views, uint8_t* images, int batch) {
    for (int image = 0; image < batch; ++image) {
        const FrameView view = views[image];
        if (view.height == 0) continue;
        for (int block_y = 0; block_y < HEIGHT / TILE_HEIGHT; ++block_y)
            for (int block_x = 0; block_x < WIDTH / TILE_WIDTH; ++block_x) {
                const Tile tile = tile_of(view, block_x, block_y);
                if (is_input(view)) {
                    for (int thread = 0; thread < TILE_THREADS; ++thread) copy_pixel(images, image, view, tile, thread);
                    continue;
                }
                StagedMemory memory;
                memset(&memory, 0xee, sizeof memory);
                const Span span = span_of(view, tile);
                Rgb sums[TILE_THREADS];
                for (Rgb& sum : sums) sum = rounding();
                for (int chunk = 0; chunk < tile.chunks; ++chunk) {
                    if (fits(view, span)) {
                        for (int t = 0; t < TILE_THREADS; ++t) stage_chunk(memory, view, tile, span, chunk, t);
                        for (int t = 0; t < TILE_THREADS; ++t) fill_staged(memory, view, tile, span, chunk, t);
                    } else {
                        for (int t = 0; t < TILE_THREADS; ++t) fill_chunk(memory.tile, view, tile, chunk, t);
                    }
                    for (int t = 0; t < TILE_THREADS; ++t) add_chunk(sums[t], memory.tile, view, tile, chunk, t);
                }
                for (int t = 0; t < TILE_THREADS; ++t) store_pixel(images, image, view, sums[t], tile, t);
            }
    }
}

int is_staged(const FrameView* view) {  // every block of the frame
    for (int block_x = 0; block_x < WIDTH / TILE_WIDTH; ++block_x)
        if (!fits(*view, span_of(*view, tile_of(*view, block_x, 0)))) return 0;
    return 1;
}

void anomaly_map(const LayerMaps* maps, const Enlarging* enlarging, const Filter* filter, float* anomaly_maps,
                 float* peaks, int batch) {
    run_strips<STRIP_THREADS>(*maps, *enlarging, *filter, anomaly_maps, peaks, batch);
}

void anomaly_map_wide(const LayerMaps* maps, const Enlarging* enlarging, const Filter* filter, float* anomaly_maps,
                      float* peaks, int batch) {
    run_strips<WIDE_THREADS>(*maps, *enlarging, *filter, anomaly_maps, peaks, batch);
}

void fuse(const LayerMaps* maps, const Enlarging* enlarging, float* fused, int batch) {
    for (int place = 0; place < batch * FUSED_HEIGHT * FUSED_WIDTH; ++place)
        fused[place] = fused_at(*maps, *enlarging, place / (FUSED_HEIGHT * FUSED_WIDTH),
                                place / FUSED_WIDTH % FUSED_HEIGHT, place % FUSED_WIDTH);
}

void floats_of_halves(const uint16_t* halves, float* floats, int count) {
    for (int i = 0; i < count; ++i) floats[i] = float_of_half(halves[i]);
}

void through_order(const float* values, int32_t* orders, float* back, int count) {
    for (int i = 0; i < count; ++i) back[i] = float_of_order(orders[i] = order_of_float(values[i]));
}

// Sizes and offsets as this compiler lays the structures out, in the order of tables.py.
void layouts(int64_t* out) {
    const int64_t facts[] = {
        sizeof(FrameView), offsetof(FrameView, chroma), offsetof(FrameView, columns), offsetof(FrameView, row_bytes),
        offsetof(FrameView, height), offsetof(FrameView, format),
        sizeof(LayerMaps), offsetof(LayerMaps, second), offsetof(LayerMaps, weights),
        offsetof(LayerMaps, exponents), offsetof(LayerMaps, half_first), offsetof(LayerMaps, half_second),
        offsetof(LayerMaps, is_sum),
        sizeof(Enlarging), offsetof(Enlarging, down), offsetof(Enlarging, left), offsetof(Enlarging, across),
        sizeof(Filter), offsetof(Filter, rows), offsetof(Filter, first_column), offsetof(Filter, columns),
        BAND, STRIP_HEIGHT, STRIP_ROWS, COEFFICIENT_BITS};
    memcpy(out, facts, sizeof facts);
}
}
