#include "../include/pfedrec/status.h"

const char *pfr_status_text(pfr_status status)
{
    switch (status) {
    case PFR_OK:
        return "done";
    case PFR_E_ARGUMENT:
        return "an argument is out of its range";
    case PFR_E_ROOM:
        return "a buffer is too small";
    case PFR_E_MALFORMED:
        return "not the CBOR that the protocol uses";
    case PFR_E_SCHEMA:
        return "not the message that was expected";
    case PFR_E_FORMAT:
        return "not a model of this format";
    case PFR_E_CHECKSUM:
        return "a model whose bytes have changed";
    case PFR_E_NOT_FINITE:
        return "a value is not finite or too large";
    case PFR_E_NOTHING:
        return "nothing to learn from, or no negative left";
    case PFR_E_SINK:
        return "the encoded bytes were refused";
    default:
        return "an unknown status";
    }
}
