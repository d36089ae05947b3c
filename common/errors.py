"""The one tree of errors that Sottovoce raises on purpose.

    SottovoceError              something the user can mend; shown as one line, exit status 2
    ├── StudyError              a study file that cannot be run; carries every problem at once
    ├── CorpusError             a folder or manifest that cannot be used
    ├── WeightsError            public weights that a study names and that are not here, or are none
    ├── AudioError              one recording that cannot be decoded; names the file
    ├── SynthesisError          speech that cannot be made: text, voice or emotion, or the library failed
    ├── UpdateRefused           an update that broke the input contract; the round goes on without it
    ├── QuorumError             too few sites answered; the round is not applied
    ├── RunError                a run folder that is damaged, of another study, or in use
    ├── PrivacyError            gradients or constants that no guarantee can be given for
    ├── LedgerError             a ledger that is damaged, copied, in use, or asked for what its rules forbid
    ├── PolicyError             a site's policy file that cannot be used; carries every problem at once
    ├── KeyFileError            a key file that is missing, readable by others, or no key
    ├── SecureSumError          a message or a state of a secure sum that was refused; carries a signed complaint
    ├── EnvelopeRefused         a message whose envelope is not its sender's, not for here, over, or not new
    ├── CertificateError        a certificate, a request for one, or an authority that cannot be used
    └── DeploymentError         a coordinator's or a hospital's folder, process or connection that cannot be used

Anything else that escapes is a defect of ours and keeps its traceback.
A message says what was expected, what came, and what to do.
"""

from collections.abc import Sequence


class SottovoceError(Exception):
    """Something the user can mend."""


class StudyError(SottovoceError):
    """A study that cannot be run, with all of its problems.

    >>> print(StudyError(["model.kind: expected one of cnn, lstm; came 'cn'."]))
    The study has 1 problem:
      model.kind: expected one of cnn, lstm; came 'cn'.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        super().__init__("\n  ".join([f"The study has {count}:", *self.problems]))

    def __reduce__(self) -> tuple[type["StudyError"], tuple[tuple[str, ...]]]:
        # Exception's own pickling would hand the joined text to __init__ (it crosses process pools).
        return StudyError, (self.problems,)


class CorpusError(SottovoceError):
    """A folder or a manifest that cannot be used as a corpus."""


class WeightsError(SottovoceError):
    """Public weights that a study names by their SHA-256: not on this machine, or not what they should be."""


class AudioError(SottovoceError):
    """One recording that cannot be decoded. The message names the file, never what was said in it."""


class SynthesisError(SottovoceError):
    """Speech that cannot be made: an unknown emotion or language, or the speech library failed."""


class UpdateRefused(SottovoceError):
    """An update that broke the input contract; refused before any arithmetic."""


class QuorumError(SottovoceError):
    """Fewer sites answered than the study demands."""


class RunError(SottovoceError):
    """A run folder that is damaged, belongs to another study, or is in use."""


class PrivacyError(SottovoceError):
    """Gradients or constants that no guarantee can be given for; nothing was released."""


class LedgerError(SottovoceError):
    """A ledger that is damaged, copied, in use, or asked for what its rules forbid. Nothing was released."""


class PolicyError(SottovoceError):
    """A site's policy file that cannot be used."""


class KeyFileError(SottovoceError):
    """A key file that is missing, readable by others, or no key. The message never holds a secret."""


class SecureSumError(SottovoceError):
    """A message, or a state of a secure sum, that was refused. Nothing was revealed by refusing.

    `reason` is one of `common.secagg.complaint.REASONS`, `accused` the party at fault as far as it is known, and
    `complaint` the signed record of it, empty where no machine of the protocol was involved. `evidence` is the
    message at fault; it is no part of the text.
    """

    def __init__(
        self, reason: str, message: str, *, accused: str = "", evidence: bytes = b"", complaint: bytes = b""
    ) -> None:
        super().__init__(message)
        self.reason, self.accused, self.evidence, self.complaint = reason, accused, evidence, complaint

    def __reduce__(self) -> tuple[object, ...]:
        # The keyword arguments would be lost on the way out of a process pool.
        return _rebuilt_secure_sum_error, (
            self.reason,
            str(self),
            self.accused,
            self.evidence,
            self.complaint,
        )


class EnvelopeRefused(SottovoceError):
    """A message that was not opened: nothing of its body was parsed. `reason` is one word of `common.envelope`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["EnvelopeRefused"], tuple[str, str]]:
        return EnvelopeRefused, (self.reason, str(self))


class CertificateError(SottovoceError):
    """A certificate, a request for one, or an authority that cannot be used. The message never holds a key."""


class DeploymentError(SottovoceError):
    """A folder, a process or a connection of a real federation that cannot be used.

    `reason` is one word for programs, where there is one: those of connections are in `client.trouble`.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def _rebuilt_secure_sum_error(
    reason: str, message: str, accused: str, evidence: bytes, complaint: bytes
) -> SecureSumError:
    return SecureSumError(reason, message, accused=accused, evidence=evidence, complaint=complaint)
