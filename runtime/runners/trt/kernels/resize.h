// Any camera frame -> the input's window, RGB, as Pillow resizes (bilinear, antialiased, 8 bits): `nnet_edge/bilinear.py` on the GPU.
// Pillow works in whole numbers, horizontally first, and rounds to 8 bits between the two passes; so does this, bit by bit.
#pragma once
#include "portable.h"

namespace nnet {

enum Format : int32_t { BGR8 = 0, RGB8 = 1, GRAY8 = 2, NV12 = 3 };

constexpr int COEFFICIENT_BITS = 22;  // Pillow's fixed point for 8-bit channels
constexpr int TILE_WIDTH = 32;        // output columns of a block: one warp wide
constexpr int TILE_HEIGHT = 8;        // output rows of a block, and input rows of a chunk
constexpr int TILE_THREADS = TILE_WIDTH * TILE_HEIGHT;

constexpr uint8_t GREY = 128;  // beside a letterbox; as in geometry.py

// One axis of a resize to `outputs` values, int32: [taps, then first and count of each output, then `taps` coefficients of each].
// A count of 0 is an output beside the letterbox.
template <int outputs>
struct Axis {
    const int32_t* table;
    NNET_HD int taps() const { return table[0]; }
    NNET_HD int first(int output) const { return table[1 + 2 * output]; }
    NNET_HD int count(int output) const { return table[2 + 2 * output]; }
    NNET_HD int coefficient(int output, int tap) const { return table[1 + 2 * outputs + output * taps() + tap]; }
};

using Rows = Axis<HEIGHT>;
using Columns = Axis<WIDTH>;

// Where one frame lies. Same layout as `VIEW` in tables.py: 56 bytes. A height of 0 means that the place is empty.
struct FrameView {
    const uint8_t* pixels;  // the first row; of NV12 the luma
    const uint8_t* chroma;  // NV12: the first row of pairs U, V
    const int32_t* rows;    // Rows
    const int32_t* columns; // Columns
    int64_t row_bytes;      // from one row to the next, may be more than the pixels need, or negative
    int32_t height, width;  // pixels
    int32_t chroma_row_bytes;
    int32_t format;
};

struct Rgb { int32_t red, green, blue; };

NNET_HD int to_8_bit(int value) { return smaller(larger(value, 0), 255); }

// Limited-range BT.601 in 20-bit fixed point, as OpenCV converts NV12.
NNET_HD Rgb rgb_of_yuv(int y, int u, int v) {
    const int half = 1 << 19;
    const int luma = larger(y - 16, 0) * 1220542;
    u -= 128;
    v -= 128;
    return {to_8_bit((luma + half + 1673527 * v) >> 20), to_8_bit((luma + half - 852492 * v - 409993 * u) >> 20),
            to_8_bit((luma + half + 2116026 * u) >> 20)};
}

NNET_HD Rgb read_pixel(const FrameView& view, int y, int x) {
    const uint8_t* row = view.pixels + y * view.row_bytes;
    if (view.format == BGR8) return {row[3 * x + 2], row[3 * x + 1], row[3 * x]};
    if (view.format == RGB8) return {row[3 * x], row[3 * x + 1], row[3 * x + 2]};
    if (view.format == GRAY8) return {row[x], row[x], row[x]};
    const uint8_t* pair = view.chroma + static_cast<int64_t>(y / 2) * view.chroma_row_bytes + (x & ~1);
    return rgb_of_yuv(row[x], pair[0], pair[1]);
}

NNET_HD Rgb rounding() {
    const int half = 1 << (COEFFICIENT_BITS - 1);
    return {half, half, half};
}

NNET_HD void add(Rgb& sum, const Rgb& pixel, int coefficient) {
    sum.red += pixel.red * coefficient;
    sum.green += pixel.green * coefficient;
    sum.blue += pixel.blue * coefficient;
}

NNET_HD Rgb rounded(const Rgb& sum) {
    return {to_8_bit(sum.red >> COEFFICIENT_BITS), to_8_bit(sum.green >> COEFFICIENT_BITS),
            to_8_bit(sum.blue >> COEFFICIENT_BITS)};
}

// First pass: column `x` of the input row `y`.
NNET_HD Rgb resize_column(const FrameView& view, int y, int x) {
    const Columns columns{view.columns};
    const int first = columns.first(x), count = columns.count(x);
    Rgb sum = rounding();
    for (int tap = 0; tap < count; ++tap) add(sum, read_pixel(view, y, first + tap), columns.coefficient(x, tap));
    return rounded(sum);
}

// A block: 32x8 output pixels, one a thread, and a chunk of 8 input rows after their first pass.
struct TileMemory { uint32_t rows[TILE_HEIGHT][TILE_WIDTH]; };

struct Tile {
    int left, top;         // of the output
    int first_row, chunks; // input rows that the block needs, in chunks of TILE_HEIGHT
};

NNET_HD Tile tile_of(const FrameView& view, int block_x, int block_y) {
    const Rows rows{view.rows};
    const int top = block_y * TILE_HEIGHT, last = top + TILE_HEIGHT - 1;
    const int first = rows.first(top), end = rows.first(last) + rows.count(last);
    return {block_x * TILE_WIDTH, top, first, (end - first + TILE_HEIGHT - 1) / TILE_HEIGHT};
}

// Phase 1 of a chunk: each thread takes one column of one input row through the first pass.
NNET_HD void fill_chunk(TileMemory& memory, const FrameView& view, const Tile& tile, int chunk, int thread) {
    const int row = thread / TILE_WIDTH, column = thread % TILE_WIDTH;
    const int y = tile.first_row + chunk * TILE_HEIGHT + row;
    if (y >= view.height) return;  // no output of this block needs it
    const Rgb pixel = resize_column(view, y, tile.left + column);
    memory.rows[row][column] = static_cast<uint32_t>(pixel.red | pixel.green << 8 | pixel.blue << 16);
}

// Phase 2 of a chunk: each thread adds to its output pixel what the chunk's rows bring.
NNET_HD void add_chunk(Rgb& sum, const TileMemory& memory, const FrameView& view, const Tile& tile, int chunk, int thread) {
    const int column = thread % TILE_WIDTH, output = tile.top + thread / TILE_WIDTH;
    const Rows rows{view.rows};
    const int start = tile.first_row + chunk * TILE_HEIGHT;
    const int first = rows.first(output);
    const int begin = larger(first, start), end = smaller(first + rows.count(output), start + TILE_HEIGHT);
    for (int y = begin; y < end; ++y) {
        const uint32_t packed = memory.rows[y - start][column];
        const Rgb pixel{static_cast<int32_t>(packed & 255), static_cast<int32_t>(packed >> 8 & 255),
                        static_cast<int32_t>(packed >> 16 & 255)};
        add(sum, pixel, rows.coefficient(output, y - first));
    }
}

NNET_HD void store_pixel(uint8_t* images, int image, const FrameView& view, const Rgb& sum, const Tile& tile, int thread) {
    const int y = tile.top + thread / TILE_WIDTH, x = tile.left + thread % TILE_WIDTH;
    uint8_t* pixel = images + ((static_cast<int64_t>(image) * HEIGHT + y) * WIDTH + x) * 3;
    const bool is_inside = Rows{view.rows}.count(y) > 0 && Columns{view.columns}.count(x) > 0;
    const Rgb value = is_inside ? rounded(sum) : Rgb{GREY, GREY, GREY};
    pixel[0] = static_cast<uint8_t>(value.red);
    pixel[1] = static_cast<uint8_t>(value.green);
    pixel[2] = static_cast<uint8_t>(value.blue);
}

}  // namespace nnet
