"""Images: layouts on disk, reading, augmentation, synthetic anomalies."""

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
