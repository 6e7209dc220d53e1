"""The demo agent: a script that works like an agent, without a model, a key or a network."""

from __future__ import annotations

SCRIPT = r"""
say() { printf 'demo agent: %s\n' "$*"; }
fail() { say "$*"; exit 1; }

say "Hello. I am a small script in the place of an AI agent."
say "I run as $(id -un), in $PWD, on branch $(git symbolic-ref --short -q HEAD || echo '(none)')."

readme=README.md
if [ -L "$readme" ] || { [ -e "$readme" ] && [ ! -f "$readme" ]; }; then readme=README.demo.md; fi
say "1. I edit $readme."
printf '\nThe demo agent was here: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" >>"$readme" ||
    fail "could not write"

say "2. I add demo/hello.sh."
mkdir -p demo || fail "could not make a directory"
cat >demo/hello.sh <<'END'
#!/bin/sh
echo "Hello from the demo agent"
END
chmod +x demo/hello.sh

say "3. I commit both."
git add -- "$readme" demo/hello.sh && git commit --quiet --message 'Say hello, by the demo agent' ||
    fail "git did not commit"
git --no-pager log -1 --stat --format='   %h %s'

say "4. I leave one change uncommitted, as agents do: demo/notes.txt."
printf 'Not committed by the agent; it comes home all the same.\n' >>demo/notes.txt || fail "could not write"

say "Done. Your own files were never in my reach; my work comes home as one branch."
"""
"""Run by ``/bin/sh -c``: what an agent does to a repository, told in a few lines."""
