// preprocess.cu's result, bit by bit, in the way of staged.h. Benchmarks alone launch it: it has not run on a GPU yet.
#include "staged.h"

extern "C" __global__ void __launch_bounds__(nnet::TILE_THREADS)
preprocess_staged(const nnet::FrameView* views, uint8_t* images) {
    __shared__ nnet::StagedMemory memory;
    const int image = blockIdx.z, thread = threadIdx.x;
    const nnet::FrameView view = views[image];
    if (view.height == 0) return;  // this and what follows are the same for the whole block
    const nnet::Tile tile = nnet::tile_of(view, blockIdx.x, blockIdx.y);
    if (nnet::is_input(view)) return nnet::copy_pixel(images, image, view, tile, thread);
    const nnet::Span span = nnet::span_of(view, tile);
    const bool is_staged = nnet::fits(view, span);
    nnet::Rgb sum = nnet::rounding();
    for (int chunk = 0; chunk < tile.chunks; ++chunk) {
        if (is_staged) {
            nnet::stage_chunk(memory, view, tile, span, chunk, thread);
            __syncthreads();
            nnet::fill_staged(memory, view, tile, span, chunk, thread);
        } else {
            nnet::fill_chunk(memory.tile, view, tile, chunk, thread);
        }
        __syncthreads();
        nnet::add_chunk(sum, memory.tile, view, tile, chunk, thread);
        __syncthreads();
    }
    nnet::store_pixel(images, image, view, sum, tile, thread);
}
