"""What methods share whose fusion's exponents are chosen on good parts; torch is imported by what computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from nnet_edge.anomaly_map import Fusion
    from nnet_edge.methods.compute import Compute
    from nnet_edge.methods.network import Network


class ChoosesExponents:
    """Settles a Method's fusion by the `exponent_power` of its model settings; stands before Method among the bases."""

    def settle(self, network: Network, held_out: np.ndarray, compute: Compute) -> Fusion:
        """The fusion with the exponents that suit these weights, see fusion_search.py."""
        from nnet_edge.methods.fusion_search import with_chosen_exponents

        return with_chosen_exponents(network, held_out, network.settings.exponent_power, compute)
