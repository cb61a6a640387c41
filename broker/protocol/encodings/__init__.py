"""How an update's row changes become a message body, in several encodings with one contract."""

from broker.protocol.encodings.factored import FACTORED, FACTORED_INT8
from broker.protocol.encodings.float16 import Float16
from broker.protocol.encodings.float32 import Float32
from broker.protocol.encodings.int4 import Int4
from broker.protocol.encodings.int8 import Int8
from broker.protocol.encodings.interface import Change, Encoding, FactoredChange, RowEncoding, SparseChange

ROW_ENCODINGS: dict[str, RowEncoding] = {
    encoding.name: encoding for encoding in (Float32(), Float16(), Int8(), Int4())
}
ENCODINGS: dict[str, Encoding] = {
    **ROW_ENCODINGS,
    **{encoding.name: encoding for encoding in (FACTORED, FACTORED_INT8)},
}

__all__ = [
    "ENCODINGS",
    "ROW_ENCODINGS",
    "Change",
    "Encoding",
    "FactoredChange",
    "Float32",
    "RowEncoding",
    "SparseChange",
]
