"""Every guarded transaction of design §5, and nothing else writes those keys.

Each function sends one transaction, once. Where the outcome is unknown it reads the task back and looks for its
own `op_id` (rule 1), until `UnavailableError` says that even the read did not get through, or that the transaction
was not there yet; the caller then knows nothing and reconciles from what it sees later. Calling again with the same
record is safe: what was applied is answered as it stands. A guard that does not hold raises `AbortedError`
(something changed: read again; reason `NOT_LEADER` when the leadership is over) or `FencedError` (the token is no
longer valid), unless the docstring says otherwise.
"""

from __future__ import annotations

from cloudclaw.coordination.transactions.archive import ArchiveTransactions
from cloudclaw.coordination.transactions.attempts import AttemptTransactions
from cloudclaw.coordination.transactions.checkpoints import CheckpointTransactions
from cloudclaw.coordination.transactions.consumers import ConsumerTransactions, Receipt
from cloudclaw.coordination.transactions.conversations import ConversationTransactions
from cloudclaw.coordination.transactions.model_keys import ModelKeyTransactions
from cloudclaw.coordination.transactions.nodes import NodeTransactions
from cloudclaw.coordination.transactions.roots import Roots, RootTransactions
from cloudclaw.coordination.transactions.store import waiting_key
from cloudclaw.coordination.transactions.tasks import TaskTransactions
from cloudclaw.coordination.transactions.tenants import TenantTransactions
from cloudclaw.coordination.transactions.types import Submission, Token, Versioned
from cloudclaw.coordination.transactions.workspaces import WorkspaceTransactions

__all__ = ["Receipt", "Roots", "Submission", "Token", "Transactions", "Versioned", "waiting_key"]


class Transactions(
    TaskTransactions,
    AttemptTransactions,
    CheckpointTransactions,
    ConversationTransactions,
    ModelKeyTransactions,
    ArchiveTransactions,
    ConsumerTransactions,
    NodeTransactions,
    WorkspaceTransactions,
    RootTransactions,
    TenantTransactions,
):
    """The transactions over one store: `Transactions(kv)`.

    Leadership guards are passed in by the leader (`Leadership.guard()`), so that a leader that lost its term can
    write nothing.
    """
