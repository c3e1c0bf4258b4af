"""Steps that scale the inputs of projections, and let what makes these inputs take it up."""

from laconic.compress.scales.awq import AwqScale
from laconic.compress.scales.smoothquant import SmoothQuant

__all__ = ["AwqScale", "SmoothQuant"]
