// Frames of a batch, each of its own size and format -> their slots of the engine's input, uint8 RGB (N, HEIGHT, WIDTH, 3).
//
// One launch for the batch, one pass over the pixels: the columns of 8 input rows are resized into shared memory (1 KiB) and
// summed up for 8 output rows at once, so nothing between the passes goes through memory.
//
// Bytes moved (DRAM): each frame once, 3 * H * W for BGR8, plus 196,608 written at 256x256. Neighbouring blocks share the edges of
// their windows, 2 * H / 256 rows and 2 * W / 256 columns; those and the overlap of neighbouring windows are L1 and L2 hits.
// The first pass is done 1.25 times for a large frame (10 of 8 input rows), the price of not storing it.
// Floor for 1920x1080 BGR8, 6.42 MB: 1.3 us at 4.8 TB/s (H200, data sheet), 31 us at 204.8 GB/s (Orin, data sheet). The
// upload of the same frame over PCIe 4.0 x16 takes 197 us at the most that the bus can (31.5 GB/s), and overlaps with it.
#include "resize.h"

extern "C" __global__ void __launch_bounds__(nnet::TILE_THREADS)
preprocess(const nnet::FrameView* views, uint8_t* images) {
    __shared__ nnet::TileMemory memory;
    const int image = blockIdx.z, thread = threadIdx.x;
    const nnet::FrameView view = views[image];
    if (view.height == 0) return;  // the same for the whole block
    const nnet::Tile tile = nnet::tile_of(view, blockIdx.x, blockIdx.y);
    nnet::Rgb sum = nnet::rounding();
    for (int chunk = 0; chunk < tile.chunks; ++chunk) {
        nnet::fill_chunk(memory, view, tile, chunk, thread);
        __syncthreads();
        nnet::add_chunk(sum, memory, view, tile, chunk, thread);
        __syncthreads();
    }
    nnet::store_pixel(images, image, view, sum, tile, thread);
}
