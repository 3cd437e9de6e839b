"""One's own rule: Adam as a listing has it that overwrites the moments with their corrected values.

The corrected moments enter the next step, where they are corrected again: a mistake, and a good example of writing
down exactly what one wants to reproduce. ``fastgd.minimize(f, x0, jac=..., method=MistakenAdam(lr=0.01))`` runs it.
"""

from dataclasses import dataclass

from fastgd.kernels import Rule, sqrt


@dataclass(frozen=True, kw_only=True)
class MistakenAdam(Rule):
    """Adam whose bias corrections are fed back into the recurrence."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def prepare(self, t):
        """Give the scalars of step t."""
        b1, b2 = self.betas
        return dict(lr=self.lr, eps=self.eps, b1=b1, c1=1 - b1, d1=1 - b1**t, b2=b2, c2=1 - b2, d2=1 - b2**t)

    @staticmethod
    def update(p, g, m, v, *, lr, eps, b1, c1, d1, b2, c2, d2):
        """Step one element."""
        m = (b1 * m + c1 * g) / d1
        v = (b2 * v + c2 * (g * g)) / d2
        p = p - lr * m / (sqrt(v) + eps)
        return p, m, v
