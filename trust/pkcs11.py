"""CA keys in a PKCS#11 token (an HSM, a smart card, SoftHSM): made there, used there, never seen here.

A key `ca-1` is a pair of objects in the token with one label (see `pkcs11_uri`) and one id. The private one is
sensitive and not extractable. What is handed out computes the SHA-256 here and has the token sign it.

Source: PKCS #11 v2.40 base specification, section 4 (objects); current mechanisms, section 2.3 (ECDSA).
"""

import secrets
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.utils import Buffer
from pkcs11 import Attribute, DeviceError, KeyType, Mechanism, MechanismFlag, ObjectClass, UserNotLoggedIn
from pkcs11.types import Object, PublicKey, Session, SignMixin
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters

from trust.custody import CustodyRefused, KeyAmbiguous, KeyExists, KeyMissing, check_name, is_name
from trust.pkcs11_uri import UriRefused, parse_token_uri, print_token_uri
from trust.token_session import TokenSession

_ID_BYTES = 16
_CURVE = "secp256r1"


class Pkcs11Custody:
    """Keys in the token that a `pkcs11:` URI names."""

    def __init__(self, uri: str, pin: bytes | None = None) -> None:
        """Reaches for nothing yet. `pin` is used when the URI names no file with it. Raises CustodyRefused."""
        try:
            self._uri = parse_token_uri(uri)
        except UriRefused as error:
            raise CustodyRefused(error.message, error.hint) from error
        self._token = TokenSession(self._uri, pin)
        self._known: dict[str, tuple[Session, SignMixin, ec.EllipticCurvePublicKey]] = {}  # by name; each for a session

    def __repr__(self) -> str:
        """Leaves the PIN out: what is printed ends in logs."""
        return f"Pkcs11Custody({self.where})"

    @property
    def where(self) -> str:
        """Says where the keys are: the URI, which holds no PIN."""
        return print_token_uri(self._uri)

    def names(self) -> tuple[str, ...]:
        """Returns the names of all keys, sorted. Raises CustodyRefused."""

        def names(session: Session) -> tuple[str, ...]:
            found = list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
            known = {self._uri.name(str(key[Attribute.LABEL])) for key in found}
            return tuple(sorted(name for name in known if name is not None and is_name(name)))

        return self._token.ask(names)

    def create(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Makes a key in the token; never beside another one of that name. Raises CustodyRefused.

        A token does not keep names unique, and processes may see each other's keys late: those that share a ring hold a
        lock while they make keys, as `root` and `enrolment` do. Two keys of one name are noticed, here or by `load`.
        """
        check_name(name)
        mark = secrets.token_bytes(_ID_BYTES)

        def create(session: Session) -> ec.EllipticCurvePublicKey:
            if any(key[Attribute.ID] != mark for key in self._objects(session, ObjectClass.PRIVATE_KEY, name)):
                self._refuse_taken(name)
            with self._token.writing() as writing:
                _remove(self._objects(writing, None, name, mark))  # half a key of an attempt that broke off
                _generate(writing, self._uri.label(name), mark)
                if len(self._objects(writing, ObjectClass.PRIVATE_KEY, name)) > 1:
                    _remove(self._objects(writing, None, name, mark))
                    self._refuse_taken(name)
            return self._pair(session, name, mark)[1]

        return TokenKey(self, name, self._token.ask(create))

    def load(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Returns a key that signs in the token; raises CustodyRefused."""
        check_name(name)
        return TokenKey(self, name, self._token.ask(lambda session: self._pair(session, name)[1]))

    def destroy(self, name: str) -> None:
        """Has the token destroy a key; one that is gone already is no error. Raises CustodyRefused.

        What is left of it inside the token and in backups of the token is up to the token.
        """
        check_name(name)

        def destroy(_: Session) -> None:
            with self._token.writing() as writing:
                private = self._objects(writing, ObjectClass.PRIVATE_KEY, name)
                public = self._objects(writing, ObjectClass.PUBLIC_KEY, name)
                if public and not private:
                    # The public half goes first: this is no step that broke off, but a session that sees half.
                    raise UserNotLoggedIn("the private half of the key is not to be seen")
                _remove(public)
                _remove(private)

        self._token.ask(destroy)

    def sign(self, name: str, public: ec.EllipticCurvePublicKey, digest: bytes) -> bytes:
        """Returns the signature (DER) of a SHA-256 by the key `name`, which is `public`. Raises CustodyRefused."""

        def sign(session: Session) -> bytes:
            known = self._known.get(name)
            private, found = known[1:] if known is not None and known[0] is session else self._pair(session, name)
            if found != public:
                message = f"the key {name} in {self._token} is not the one that it was"
                raise CustodyRefused(message, "put the token back that was there, or start again")
            pair = bytes(private.sign(digest, mechanism=Mechanism.ECDSA))
            half = len(pair) // 2
            signature = encode_dss_signature(int.from_bytes(pair[:half], "big"), int.from_bytes(pair[half:], "big"))
            try:
                # A module that another ring started anew gives its numbers out again: ours may mean another key now.
                public.verify(signature, digest, ec.ECDSA(Prehashed(hashes.SHA256())))
            except InvalidSignature as error:
                raise DeviceError("the signature is not by the key that was asked for") from error
            return signature

        return self._token.ask(sign)

    def _pair(
        self, session: Session, name: str, mark: bytes | None = None
    ) -> tuple[SignMixin, ec.EllipticCurvePublicKey]:
        found = self._objects(session, ObjectClass.PRIVATE_KEY, name, mark)
        if not found:
            raise KeyMissing(f"there is no key {name} in {self._token}", "check the URI: token=, object=")
        if len(found) > 1:
            message = f"there are {len(found)} keys labelled {self._uri.label(name)} in {self._token}"
            raise KeyAmbiguous(message, "remove all but the right one with the token's own tool")
        private = found[0]
        if not private[Attribute.SENSITIVE] or private[Attribute.EXTRACTABLE]:
            message = f"the key {name} in {self._token} may leave the token"
            raise CustodyRefused(message, "let Isthmus make the key; who could read this one cannot be known")
        public = self._objects(session, ObjectClass.PUBLIC_KEY, name, private[Attribute.ID])
        if len(public) != 1 or not isinstance(public[0], PublicKey) or not isinstance(private, SignMixin):
            message = f"the key {name} in {self._token} may not sign, or has lost its public half"
            raise CustodyRefused(message, "restore the token from its backup")
        self._known[name] = (session, private, _public_key(public[0], name))
        return private, self._known[name][2]

    def _objects(
        self, session: Session, kind: ObjectClass | None, name: str, mark: bytes | None = None
    ) -> list[Object]:
        wanted: dict[Attribute, object] = {Attribute.LABEL: self._uri.label(name)}
        wanted |= {} if kind is None else {Attribute.CLASS: kind}
        wanted |= {} if mark is None else {Attribute.ID: mark}
        return list(session.get_objects(wanted))

    def _refuse_taken(self, name: str) -> NoReturn:
        message = f"there is a key {name} in {self._token} already"
        raise KeyExists(message, "no key is ever overwritten: destroy it with the token's own tool, or say object=")


class TokenKey(ec.EllipticCurvePrivateKey):
    """A P-256 key that stays in its token: signs, and can do nothing else. Safe in any thread."""

    def __init__(self, ring: Pkcs11Custody, name: str, public: ec.EllipticCurvePublicKey) -> None:
        self._ring = ring
        self._name = name
        self._public = public

    def __repr__(self) -> str:
        """Names the key; there is nothing secret here."""
        return f"TokenKey({self._name})"

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Returns the signature (DER) of `data`, by ECDSA with SHA-256 alone. Blocks; raises CustodyRefused."""
        algorithm = signature_algorithm.algorithm
        is_digest = isinstance(algorithm, Prehashed)
        hashed = algorithm._algorithm if isinstance(algorithm, Prehashed) else algorithm
        if not isinstance(signature_algorithm, ec.ECDSA) or not isinstance(hashed, hashes.SHA256):
            raise UnsupportedAlgorithm("a key in a token signs by ECDSA with SHA-256")
        return self._ring.sign(self._name, self._public, bytes(data) if is_digest else _sha256(data))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Returns the public key, as the token told it."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """In bits."""
        return self._public.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> bytes:
        """Refused: a CA key signs."""
        raise UnsupportedAlgorithm("a key in a token signs, and does nothing else")

    def private_numbers(self) -> ec.EllipticCurvePrivateNumbers:
        """Refused: the key does not leave its token."""
        raise UnsupportedAlgorithm("a key in a token does not leave it")

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002 - the name that the interface gives it
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> bytes:
        """Refused: the key does not leave its token."""
        raise UnsupportedAlgorithm("a key in a token does not leave it")

    def __copy__(self) -> "TokenKey":
        """Itself: it never changes."""
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> "TokenKey":
        """Itself: there is one key, in the token."""
        return self


def _generate(session: Session, label: str, mark: bytes) -> None:
    curve = {Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVE)}
    parameters = session.create_domain_parameters(KeyType.EC, curve, local=True)
    parameters.generate_keypair(
        id=mark,
        label=label,
        store=True,  # CKA_TOKEN
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        private_template={Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )


def _remove(found: list[Object]) -> None:
    for one in found:
        one.destroy()


def _public_key(found: PublicKey, name: str) -> ec.EllipticCurvePublicKey:
    try:
        public = serialization.load_der_public_key(encode_ec_public_key(found))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CustodyRefused(f"the key {name} in the token is not a P-256 key", "let Isthmus make the key") from error
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise CustodyRefused(f"the key {name} in the token is not a P-256 key", "let Isthmus make the key")
    return public


def _sha256(data: Buffer) -> bytes:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(data)
    return digest.finalize()
