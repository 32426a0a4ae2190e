"""The closed loop of ``vla-rollout``: simulators in processes of their own against a policy server."""
