"""Images: layouts on disk, reading, augmentation, synthetic anomalies."""

from nnet_edge.moved import forward

__getattr__ = forward(
    __name__,
    {
        "Dataset": "nnet_edge.data.images",
        "Sample": "nnet_edge.data.images",
        "read_dataset": "nnet_edge.data.images",
        "Images": "nnet_edge.data.images",
        "Skipped": "nnet_edge.data.images",
        "find_duplicates": "nnet_edge.data.images",
        "fingerprint": "nnet_edge.data.images",
        "hold_out": "nnet_edge.data.images",
        "load_images": "nnet_edge.data.images",
        "load_mask": "nnet_edge.data.images",
    },
)
