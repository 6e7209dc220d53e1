"""The session's one way out: a gateway to the model provider's API that holds the key, so the agent does not.

Reading order: ``provider`` (where to, with which credential), ``rules`` and ``bodies`` (what may pass; pure),
``proxy_rules`` and ``hello`` (the same for what goes elsewhere), ``addresses``, ``hostproxy``, ``dialer`` and
``upstream`` (the way out), ``conversation`` (HTTP with a client), ``api``, ``proxy`` and ``tunnel`` (what
becomes of its requests), ``connection`` (one client), ``live``, ``budget``,
``usage`` and ``document`` (what is allowed and used up meanwhile), ``events`` and ``tally`` (what is written
down and added up), ``gateway`` and ``confine`` (the process), ``client`` (how the session starts and ends
it), ``wire`` (what the last two say to each other), ``control`` and ``orders`` (what the user tells it while
it runs), ``journal`` (reading the log).
"""
