"""Training data: DeePMD-kit's systems, frames, and flat batches."""

from dphpc.train.data.batch import Batch, Centers, Geometry
from dphpc.train.data.dataset import Dataset, open_systems
from dphpc.train.data.system import Frame, FrameInputs, System

__all__ = ["Batch", "Centers", "Dataset", "Frame", "FrameInputs", "Geometry", "System", "open_systems"]
