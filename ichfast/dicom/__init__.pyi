from .slices import Slice as Slice
from .slices import read_slices as read_slices
