"""The table: one row a family, and a few where the config turns one name into several layouts."""

from qkspec.layouts.decoders import DECODERS
from qkspec.layouts.detection import DETECTION
from qkspec.layouts.encoders import ENCODERS
from qkspec.layouts.latents import LATENTS
from qkspec.layouts.layout import Layout
from qkspec.layouts.originals import ORIGINALS
from qkspec.layouts.sound import SOUND
from qkspec.layouts.vision import VISION

FAMILIES: tuple[Layout, ...] = (*DECODERS, *LATENTS, *ENCODERS, *VISION, *DETECTION, *SOUND, *ORIGINALS)
