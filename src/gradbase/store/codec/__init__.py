"""Gradients in fewer bytes: codecs with error feedback, and the choice among them. See README.md for the format."""

from gradbase.store.codec._choice import CANDIDATES, Choice, CodecSpeed, choose, measure_speeds
from gradbase.store.codec._codec import Codec, Compressor, Message, decode, encode, encode_again, parse_codec, split

__all__ = [
    "CANDIDATES",
    "Choice",
    "Codec",
    "CodecSpeed",
    "Compressor",
    "Message",
    "choose",
    "decode",
    "encode",
    "encode_again",
    "measure_speeds",
    "parse_codec",
    "split",
]
