// Another way to resize.h's result, bit by bit: the rows of a chunk are first staged in shared memory by loads of 16 bytes.
//
// In resize.h the 32 threads of a warp read single bytes that lie 3 * W / WIDTH bytes apart, 22.5 of a frame of 1920 columns: each
// load of a warp touches 23 sectors of 32 bytes for 32 bytes of use. Here each byte comes once, in whole sectors, and the
// taps read shared memory, where that distance (5.6 words) hardly makes banks collide. A frame that has the input's size is
// copied. Rows wider than a segment are read as resize.h reads them.
//
// NOT MEASURED: no GPU has run it. `python -m nnet_edge.benchmarks.gpu.kernels --variant staged` compares; the runner uses
// resize.h.
#pragma once
#include "resize.h"

namespace nnet {

constexpr int VECTOR_BYTES = 16;
constexpr int SEGMENT_BYTES = 1536;             // of an input row: 32 output columns of a frame of 3840 columns, BGR8
constexpr int CHROMA_START = SEGMENT_BYTES / 2;  // NV12: luma before, chroma of the row pair behind

struct alignas(VECTOR_BYTES) Vector { uint32_t words[4]; };

struct StagedMemory {
    TileMemory tile;
    alignas(VECTOR_BYTES) uint8_t rows[TILE_HEIGHT][SEGMENT_BYTES];
};

// The input columns that a block needs.
struct Span { int first, columns; };

NNET_HD Span span_of(const FrameView& view, const Tile& tile) {
    const Columns columns{view.columns};
    const int last = tile.left + TILE_WIDTH - 1, first = columns.first(tile.left) & ~1;  // of NV12 a whole pair
    return {first, columns.first(last) + columns.count(last) - first};
}

NNET_HD int pixel_bytes(const FrameView& view) { return view.format == BGR8 || view.format == RGB8 ? 3 : 1; }

// Whether a segment holds the span, wherever in 16 bytes it begins and ends; the same for a whole block.
NNET_HD bool fits(const FrameView& view, const Span& span) {
    const int room = view.format == NV12 ? CHROMA_START : SEGMENT_BYTES;
    return (span.columns + 1) * pixel_bytes(view) + 2 * (VECTOR_BYTES - 1) <= room;
}

// Whether the frame has the input's size, so that each pixel has one tap, of weight 1: it is copied.
NNET_HD bool is_input(const FrameView& view) {
    const int one = 1 << COEFFICIENT_BITS;
    return view.height == HEIGHT && view.width == WIDTH && view.format != NV12 && Rows{view.rows}.coefficient(0, 0) == one &&
           Columns{view.columns}.coefficient(0, 0) == one;
}

NNET_HD int lead_of(const uint8_t* place) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(place) % VECTOR_BYTES);
}

// Copy the 16 bytes number `vector` of those that hold `bytes` bytes from `place` on. All of them lie in one aligned block with
// a byte that is wanted, so nothing outside the frame's allocation is read.
NNET_HD void load_vector(uint8_t* target, const uint8_t* place, int bytes, int vector) {
    const int lead = lead_of(place);
    if (vector * VECTOR_BYTES >= lead + bytes) return;
    const Vector* source = reinterpret_cast<const Vector*>(place - lead) + vector;
    reinterpret_cast<Vector*>(target)[vector] = *source;
}

NNET_HD const uint8_t* start_of(const FrameView& view, const Span& span, int y) {
    return view.pixels + y * view.row_bytes + span.first * pixel_bytes(view);
}

NNET_HD const uint8_t* chroma_of(const FrameView& view, const Span& span, int y) {
    return view.chroma + static_cast<int64_t>(y / 2) * view.chroma_row_bytes + span.first;
}

// Phase 0 of a chunk: neighbouring threads load neighbouring 16 bytes of its rows; of NV12 each row has its chroma behind.
NNET_HD void stage_chunk(StagedMemory& memory, const FrameView& view, const Tile& tile, const Span& span, int chunk, int thread) {
    const int bytes = span.columns * pixel_bytes(view), chroma_bytes = (span.columns + 1) & ~1;
    const int vectors = (bytes + 1 + 2 * (VECTOR_BYTES - 1)) / VECTOR_BYTES;
    for (int i = thread; i < TILE_HEIGHT * vectors; i += TILE_THREADS) {
        const int row = i / vectors, vector = i % vectors, y = tile.first_row + chunk * TILE_HEIGHT + row;
        if (y >= view.height) continue;
        load_vector(memory.rows[row], start_of(view, span, y), bytes, vector);
        if (view.format == NV12) load_vector(memory.rows[row] + CHROMA_START, chroma_of(view, span, y), chroma_bytes, vector);
    }
}

// The pixel `column` of the span, of a staged row that begins at `pixels`, and its chroma at `chroma`.
NNET_HD Rgb staged_pixel(const FrameView& view, const uint8_t* pixels, const uint8_t* chroma, int column) {
    if (view.format == BGR8) return {pixels[3 * column + 2], pixels[3 * column + 1], pixels[3 * column]};
    if (view.format == RGB8) return {pixels[3 * column], pixels[3 * column + 1], pixels[3 * column + 2]};
    if (view.format == GRAY8) return {pixels[column], pixels[column], pixels[column]};
    return rgb_of_yuv(pixels[column], chroma[column & ~1], chroma[(column & ~1) + 1]);
}

// Phase 1 of a chunk, as fill_chunk of resize.h, from the staged rows.
NNET_HD void fill_staged(StagedMemory& memory, const FrameView& view, const Tile& tile, const Span& span, int chunk, int thread) {
    const int row = thread / TILE_WIDTH, x = tile.left + thread % TILE_WIDTH;
    const int y = tile.first_row + chunk * TILE_HEIGHT + row;
    if (y >= view.height) return;
    const uint8_t* pixels = memory.rows[row] + lead_of(start_of(view, span, y));
    const uint8_t* chroma = memory.rows[row] + CHROMA_START + (view.format == NV12 ? lead_of(chroma_of(view, span, y)) : 0);
    const Columns columns{view.columns};
    const int first = columns.first(x) - span.first, count = columns.count(x);
    Rgb sum = rounding();
    for (int tap = 0; tap < count; ++tap)
        add(sum, staged_pixel(view, pixels, chroma, first + tap), columns.coefficient(x, tap));
    const Rgb pixel = rounded(sum);
    memory.tile.rows[row][thread % TILE_WIDTH] = static_cast<uint32_t>(pixel.red | pixel.green << 8 | pixel.blue << 16);
}

// A pixel of a frame that has the input's size; of an RGB one whose rows are aligned, six threads of a row copy 16 bytes each.
NNET_HD void copy_pixel(uint8_t* images, int image, const FrameView& view, const Tile& tile, int thread) {
    uint8_t* rows = images + (static_cast<int64_t>(image) * HEIGHT + tile.top) * WIDTH * 3 + tile.left * 3;
    const bool is_aligned = lead_of(view.pixels) == 0 && view.row_bytes % VECTOR_BYTES == 0;
    constexpr int vectors = TILE_WIDTH * 3 / VECTOR_BYTES;
    if (view.format == RGB8 && is_aligned) {
        if (thread >= TILE_HEIGHT * vectors) return;
        const int row = thread / vectors, vector = thread % vectors;
        const uint8_t* source = view.pixels + (tile.top + row) * view.row_bytes + tile.left * 3;
        reinterpret_cast<Vector*>(rows + row * WIDTH * 3)[vector] = reinterpret_cast<const Vector*>(source)[vector];
        return;
    }
    const int row = thread / TILE_WIDTH, column = thread % TILE_WIDTH;
    const Rgb pixel = read_pixel(view, tile.top + row, tile.left + column);
    uint8_t* target = rows + (row * WIDTH + column) * 3;
    target[0] = static_cast<uint8_t>(pixel.red);
    target[1] = static_cast<uint8_t>(pixel.green);
    target[2] = static_cast<uint8_t>(pixel.blue);
}

}  // namespace nnet
