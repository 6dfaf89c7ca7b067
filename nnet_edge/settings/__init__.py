"""Settings as frozen dataclasses, read from flags or TOML by one reader."""

from nnet_edge.moved import forward

__getattr__ = forward(
    __name__,
    {
        "ModelSettings": "nnet_edge.methods.nnet.settings",
        "TrainSettings": "nnet_edge.methods.nnet.settings",
        "Augmentation": "nnet_edge.settings.augmentation",
    },
)
