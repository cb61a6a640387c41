"""Which heads a device believes: signed with a key of its fleet, and not older than one it has met.

It does no input or output. Without keys every head is believed, as there is nothing to tell them apart by.

A head's place in time, among those of one key, is (session, version). An aggregator that signs numbers its
sessions by its clock, in milliseconds, so a head that was signed once and is sent again later is behind,
whatever directory it is from.
"""

from broker.errors import SignatureError
from broker.protocol.messages import Head
from broker.protocol.signatures import signer_of


class Trust:
    """The keys of a fleet and what was met with them.

    Parameters
    ----------
    keys : tuple of bytes
        Public keys, oldest first; none: no signature is asked for.
    met_key : str
        The newest key that has signed a head here, in hexadecimal digits; earlier ones count no more.
    met : Head or None
        The head of the table on the device.

    Attributes
    ----------
    refused : int
        Heads that were not believed, since the start.
    complaint : str
        Why the last one was not; empty once one was believed after it.
    """

    def __init__(
        self, fleet: str, keys: tuple[bytes, ...], met_key: str = "", met: Head | None = None
    ) -> None:
        self.refused = 0
        self.complaint = ""
        self._fleet = fleet
        self._keys = keys
        names = [key.hex() for key in keys]
        # A file of other keys is the owner's decision; what was met with old ones says nothing about it.
        self._first = names.index(met_key) if met_key in names else 0
        self._newest = (0, 0)
        if met is not None and self._keys and self._is_signed_by_first(met):
            self._newest = met.session, met.version

    @property
    def met_key(self) -> str:
        """The newest key that has signed a head here."""
        return self._keys[self._first].hex() if self._keys else ""

    def _is_signed_by_first(self, head: Head) -> bool:
        try:
            signer_of(head, self._fleet, self._keys[self._first : self._first + 1])
        except SignatureError:
            return False
        return True

    def check(self, head: Head) -> bool:
        """Believe a head; tell whether it is the first of a later key, which must be remembered.

        Raises
        ------
        SignatureError
            When it is not believed; nothing is changed but `refused` and `complaint`.
        """
        if not self._keys:
            return False
        try:
            place = self._first + signer_of(head, self._fleet, self._keys[self._first :])
            # A later key begins anew: the earlier one may have been stolen, and its heads number anything.
            if place == self._first and (head.session, head.version) < self._newest:
                raise SignatureError(  # noqa: TRY301 - one way to the count
                    f"the head of version {head.version} is older than one that was here before"
                )
        except SignatureError as error:
            self.refused += 1
            self.complaint = str(error)
            raise
        self._newest = head.session, head.version
        self.complaint = ""
        is_later, self._first = place > self._first, place
        return is_later
