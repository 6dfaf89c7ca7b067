"""Images: how they lie on disk, how they are read, varied and damaged."""

from nnet_edge.moved import forward

__getattr__ = forward(
    __name__,
    {
        "Dataset": "nnet_edge.data.images",
        "Sample": "nnet_edge.data.images",
        "read_dataset": "nnet_edge.data.images",
        "load_images": "nnet_edge.data.images",
    },
)
