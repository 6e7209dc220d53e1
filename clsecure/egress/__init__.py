"""The session's one way out: a gateway to the model provider's API that holds the key, so the agent does not.

Reading order: ``provider`` (where to, with which credential), ``rules`` and ``bodies`` (what may pass; pure),
``addresses`` and ``upstream`` (the way to the provider), ``connection`` (one client), ``gateway`` (the
process), ``client`` (how the session starts and ends it), ``wire`` (what the last two say to each other).
"""
