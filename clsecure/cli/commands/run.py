"""``clsecure``: one session, from the repository to the branch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from clsecure.cli import render
from clsecure.cli.options import Invocation, RunOptions
from clsecure.errors import ClsecureError
from clsecure.installation import require_installation
from clsecure.model import DockerAccess, IsolationMode, NetworkPolicy, OnFinish
from clsecure.privileged.client import HelperConnection
from clsecure.settings.values.output import OutputFormat

if TYPE_CHECKING:
    from clsecure.session.plan import SessionPlan
    from clsecure.session.ui import Ui
    from clsecure.settings.model import Settings
    from clsecure.workspace.repository import Repository


def execute(invocation: Invocation, ui: Ui) -> int:
    """Run a session; return the agent's exit status."""
    options = invocation.options
    assert isinstance(options, RunOptions)  # noqa: S101  # the dispatcher's word
    # sudo and the helper take as long to start as the imports below: let them start meanwhile.
    installation = None if options.dry_run else require_installation()
    connection = HelperConnection(installation.helper) if installation else None
    failure: ClsecureError | None = None
    try:
        from clsecure.workspace.repository import discover

        with ThreadPoolExecutor(1) as background:
            # git is asked meanwhile, too.
            discovered = background.submit(discover, Path.cwd())
            from clsecure.cli.companions import Companions
            from clsecure.cli.containment import confirm_host_docker
            from clsecure.session.context import Surroundings
            from clsecure.session.relay import on_terminal
            from clsecure.session.runner import SessionRunner
            from clsecure.session.store import Store
            from clsecure.settings.model import load
            from clsecure.settings.project import with_project

        repository = discovered.result()
        settings = load(with_project(invocation.layers, repository.top))
        plan = _plan(settings, options, repository, ui)
        if installation is None or connection is None:
            _show(plan, settings, repository, ui, as_json=invocation.output is OutputFormat.JSON)
            return 0
        if plan.docker is DockerAccess.HOST:
            confirm_host_docker(ui, yes=options.yes)
        companions = Companions(plan, ui)
        companions.begin()
        around = Surroundings(
            environ=dict(os.environ),
            home=Path.home(),
            terminal=on_terminal() and not plan.stdout_is_ours,
            installation=installation,
            store=Store(),
        )
        session = SessionRunner(plan, repository, ui, around, connection, asking=companions.asking)
        try:
            result = session.run()
        except ClsecureError as error:
            failure = error
    finally:
        # Before anything else is called: it finds the session's account free.
        if connection is not None:
            connection.close()
    if failure is not None:
        companions.failed(failure)
        raise failure
    companions.ended(result)
    if invocation.output is OutputFormat.JSON:
        render.write_json(render.plain(result))
    return result.exit_code


def _plan(settings: Settings, options: RunOptions, repository: Repository, ui: Ui) -> SessionPlan:
    from clsecure.agents.spec import find_spec
    from clsecure.cli.containment import HOST_DOCKER, contain
    from clsecure.cli.reach import reach
    from clsecure.cli.setup_reach import SetupReach, setup_reach
    from clsecure.session.plan import SessionPlan, new_session_id
    from clsecure.session.store import DEFAULT_SESSION
    from clsecure.session.toolchains import toolchain_mounts
    from clsecure.settings.enforce import within

    for warning in settings.warnings:
        ui.warn(warning)  # before presets are asked, which may take its time
    mode = contain(settings, ui)
    reached = reach(settings, environ=os.environ, home=Path.home(), repository=repository.top, ui=ui)
    setup_script = None if options.skip_setup else settings.setup_script
    dependencies = settings.install_dependencies and not options.skip_setup
    setup = SetupReach()
    if setup_script is not None or dependencies:
        setup = setup_reach(
            settings, reached, environ=os.environ, home=Path.home(), repository=repository.top, ui=ui
        )
    for warning in (*reached.warnings, *setup.warnings):
        ui.warn(warning)
    for note in (*settings.notes, *reached.notes, *setup.notes):
        ui.note(note)
    find_spec(settings.agent, settings.agents)  # a dry run says so, too, when there is none
    shared = toolchain_mounts(settings.mounts) if settings.toolchains else ()
    toolchains = within(shared, settings.ceilings)
    now = datetime.now().astimezone()
    return SessionPlan(
        session_id=new_session_id(now),
        started=now,
        project=repository.top,
        project_name=repository.top.name,
        session=settings.session or DEFAULT_SESSION,
        mode=mode,
        network=settings.network,
        agent=settings.agent,
        command=options.argv,
        shell=options.shell,
        mounts=(*settings.mounts, *toolchains),
        toolchains=toolchains,
        full_clone=settings.full_clone,
        on_finish=settings.on_finish,
        branch=options.branch,
        message=options.message,
        resume=options.resume,
        time_limit=settings.time_limit,
        base_url=settings.base_url,
        stdout_is_ours=settings.output is OutputFormat.JSON,
        policy=reached.policy,
        tool_env=reached.tool_env,
        budget=settings.budget,
        credentials=settings.credentials,
        provider_tools=settings.provider_tools,
        allow_private=settings.allow_private and settings.network is NetworkPolicy.FULL,
        limits=settings.limits,
        setup_script=setup_script,
        install_dependencies=dependencies,
        setup_policy=setup.policy,
        setup_tool_env=setup.tool_env,
        github_token=settings.github_token,
        cleanup_hook_timeout=settings.cleanup_hook_timeout,
        engine=settings.engine,
        runtime=settings.runtime,
        image=settings.image,
        image_mirror=settings.image_mirror,
        image_registry=settings.image_registry,
        docker=settings.docker,
        docker_images=settings.docker_images,
        skip_docker_autodetect=settings.skip_docker_autodetect,
        provider=settings.provider,
        notify=settings.notify,
        notify_command=settings.notify_command,
        notify_after=settings.notify_after,
        served=settings.served,
        record_ssh_key=settings.record_ssh_key,
        record_notes=settings.record_notes,
        own_agent=next((table for table in settings.agents if table.name == settings.agent), None),
        warnings=(
            *settings.warnings,
            *reached.warnings,
            *setup.warnings,
            *((HOST_DOCKER,) if settings.docker is DockerAccess.HOST else ()),
        ),
    )


def _from(settings: Settings, key: str) -> str:
    """Return where a value comes from, in words to put after it; empty for defaults."""
    where = settings.provenance(key).where
    return f" ({where})" if where else ""


def _engines(plan: SessionPlan, settings: Settings) -> Iterator[str]:
    """Say what makes the container, and what of an engine the agent can use."""
    if plan.mode is IsolationMode.CONTAINER:
        runtime = f", runtime {plan.runtime}{_from(settings, 'runtime')}" if plan.runtime else ""
        yield f"engine     {plan.engine}{_from(settings, 'engine')}{runtime}"
        yield f"image      {plan.image}{_from(settings, 'image')}"
    match plan.docker:
        case DockerAccess.NONE:
            return
        case DockerAccess.OWN:
            yield f"docker     an engine of the session's own{_from(settings, 'docker')}"
            yield from (f"copies     the image {name} into it" for name in plan.docker_images)
        case DockerAccess.HOST:
            yield f"docker     this machine's, as good as root{_from(settings, 'docker')}; you will be asked"
        case _:
            assert_never(plan.docker)


def _before_the_agent(plan: SessionPlan) -> Iterator[str]:
    """Say what runs inside in a fresh workspace, and what it reaches."""
    if plan.setup_script is not None:
        token = " (gets GH_TOKEN)" if plan.github_token else ""
        yield f"setup      {plan.setup_script}{token}"
    if plan.install_dependencies:
        yield "setup      the dependencies that the repository's lock files name"
    if plan.setup_policy is not None:
        hosts = ", ".join(str(rule.pattern) for rule in plan.setup_policy.allow)
        yield f"setup may  reach: {hosts or plan.setup_policy.kind}"


def _show(plan: SessionPlan, settings: Settings, repository: Repository, ui: Ui, *, as_json: bool) -> None:
    """Print the plan of a dry run."""
    from clsecure.cli.reach import described
    from clsecure.session.limits import effective
    from clsecure.settings.values.amounts import human_limits

    if as_json:
        render.write_json(render.plain(plan))
        return
    network = {
        NetworkPolicy.NONE: "none",
        NetworkPolicy.API: "the model's API and nothing else",
        NetworkPolicy.ALLOWLIST: "the model's API and the allowed hosts",
        NetworkPolicy.FULL: "the internet",
    }[plan.network]
    own = f"{plan.agent}: {' '.join(plan.own_agent.command)}" if plan.own_agent else plan.agent
    what = " ".join(plan.command) if plan.command else "a shell" if plan.shell else own
    finish = "ask on a terminal, else keep" if plan.on_finish is OnFinish.ASK else plan.on_finish.value
    copied = "the whole history" if plan.full_clone else "the last 50 commits"
    ui.banner(
        [
            f"runs       {what}",
            f"project    {plan.project}",
            f"session    {plan.session}",
            f"copies     {repository.head[:12]} ({repository.branch or 'detached'}), "
            f"{copied}, and your uncommitted changes",
            f"mode       {plan.mode}{_from(settings, 'mode')}",
            *_engines(plan, settings),
            f"network    {network}{_from(settings, 'network')}",
            *described(plan),
            *(f"mount      {line}" for line in plan.mounted),
            f"limits     {human_limits(effective(plan.limits)) or 'none'}{_from(settings, 'limits')}",
            *_before_the_agent(plan),
            f"time limit {plan.time_limit or 'none'}",
            f"at the end {finish}; as branch {plan.branch_name}",
            "nothing was done (--dry-run)",
        ]
    )
