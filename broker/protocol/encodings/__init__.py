"""How an update's row changes become a message body, in several encodings with one contract."""

from broker.protocol.encodings.float32 import Float32
from broker.protocol.encodings.int4 import Int4
from broker.protocol.encodings.int8 import Int8
from broker.protocol.encodings.interface import Encoding, SparseChange

ENCODINGS: dict[str, Encoding] = {encoding.name: encoding for encoding in (Float32(), Int8(), Int4())}

__all__ = ["ENCODINGS", "Encoding", "Float32", "Int4", "Int8", "SparseChange"]
