"""How far a dream can be trusted: seven questions to a world, answered with definitions and intervals.

    report = trust_report("walker.zip", "dm_control/walker-walk-v0", policies={"mine": agent, ...}, episodes=10)
    report.save("runs/trust")

or `python -m wmgym.trust walker.zip --env dm_control/walker-walk-v0`. `docs/trust.md` says how to read it.
"""

from wmgym.trust.figures import Figure, Section, TrustReport
from wmgym.trust.policies import Policy, noisy_policies, simple_policies
from wmgym.trust.report import TrustSettings, trust_report

__all__ = [
    "Figure",
    "Policy",
    "Section",
    "TrustReport",
    "TrustSettings",
    "noisy_policies",
    "simple_policies",
    "trust_report",
]
