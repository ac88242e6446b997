"""Gradients in fewer bytes: codecs with error feedback, and the choice among them. See README.md for the format."""

from gradbase.store.codec._choice import CANDIDATES, Choice, CodecSpeed, choose, measure_speeds
from gradbase.store.codec._codec import Codec, Compressor, Message, decode, encode, encode_again, parse_codec, split
from gradbase.store.codec._direction import Direction, carried_numel

__all__ = [
    "CANDIDATES",
    "Choice",
    "Codec",
    "CodecSpeed",
    "Compressor",
    "Direction",
    "Message",
    "carried_numel",
    "choose",
    "decode",
    "encode",
    "encode_again",
    "measure_speeds",
    "parse_codec",
    "split",
]
