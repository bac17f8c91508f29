"""Build the workspace of `vcppo dashboard` on Weights & Biases.

The title of a section is a question, its panels answer it, and its text explains what the numbers
mean and which values are healthy, in the words of docs/metrics.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_vcppo.metrics.glossary import define

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

X_AXIS = "trainer/global_step"
"""Lightning's name for the x axis of a logger: rollouts done, for VC-PPO."""

SECTIONS: dict[str, list[list[str]]] = {
    "Is it learning?": [
        ["rollout/reward_mean"],
        ["rollout/accuracy"],
        ["rollout/response_length"],
        ["rollout/truncation_rate"],
    ],
    "Does it hold on problems it has not seen?": [
        ["eval/accuracy", "eval/accuracy_low", "eval/accuracy_high"],
        ["eval/pass_at_k", "eval/maj_at_k"],
        ["eval/response_length"],
        ["eval/truncation_rate"],
    ],
    "Is the critic ready?": [
        ["critic/r2", "value_pretraining/r2", "critic/explained_variance"],
        ["critic/loss", "value_pretraining/loss"],
        ["critic/value_mean", "critic/return_mean"],
        ["critic/value_error"],
    ],
    "How far does the reward reach?": [
        ["decay/actor_reward_share_first", "decay/critic_reward_share_first"],
        ["decay/value_decile_{0..9}"],
        ["decay/advantage_decile_{0..9}"],
        ["decay/bias_first", "decay/bias_last"],
    ],
    "Is the policy stable?": [
        ["policy/approx_kl"],
        ["policy/clipfrac"],
        ["policy/entropy"],
        ["policy/grad_norm", "critic/grad_norm"],
    ],
    "Where does the time go?": [
        ["time/generate_s", "time/score_s", "time/update_s"],
        ["rollout/tokens_per_second"],
    ],
}
"""Section -> its line plots, each given by the keys of its lines; `{0..9}` is ten lines."""

PICTURES = {
    "Does it hold on problems it has not seen?": ["eval/samples", "eval/by_group"],
    "How far does the reward reach?": ["decay/value_heat_map", "decay/advantage_heat_map"],
}
"""Section -> its tables (`eval/`) and pictures."""


def dashboard(
    project: str = "lightning-vcppo", entity: str | None = None, dry_run: bool = False
) -> None:
    """Build the workspace of a project on Weights & Biases, or print it.

    Args:
        project: The project; the default is that of `--loggers wandb`.
        entity: User or team; None is the account that is logged in.
        dry_run: Print the workspace as JSON instead; needs neither network nor account.

    Raises:
        ImportError: If wandb-workspaces is not installed.
        ValueError: If there is no account, or it may not write to the project.
    """
    if dry_run:
        spec = build_workspace(project, entity or "")._to_model().spec
        print(spec.model_dump_json(by_alias=True, exclude_none=True, indent=2))
        return
    import wandb

    try:
        entity = entity or wandb.Api().default_entity
        url = build_workspace(project, entity or "").save().url
    except (wandb.errors.Error, ValueError) as error:
        raise ValueError(f"Weights & Biases: {error}; --dry_run needs no account") from error
    print(url)


def build_workspace(project: str, entity: str) -> Workspace:
    """Build the workspace without using the network.

    Raises:
        ImportError: If wandb-workspaces is not installed.
    """
    try:
        from wandb_workspaces import workspaces
    except ImportError as error:
        raise ImportError("needs `pip install 'lightning-vcppo[dashboard]'`") from error

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="lightning-vcppo",
        sections=[_section(name) for name in SECTIONS],
        settings=workspaces.WorkspaceSettings(x_axis=X_AXIS, group_by_prefix="first"),
    )


def _section(name: str) -> Section:
    from wandb_workspaces.reports.v2 import interface
    from wandb_workspaces.workspaces import Section, SectionLayoutSettings

    panels: list[Any] = []
    for keys in SECTIONS[name]:
        y: list[Any] = [line for key in keys for line in lines(key)]
        panels.append(interface.LinePlot(title=_title(keys), x=X_AXIS, y=y))
    for key in PICTURES.get(name, []):
        is_table = key.startswith("eval/")
        panels.append(
            interface.WeavePanelSummaryTable(table_name=key)
            if is_table
            else interface.MediaBrowser(title=key, media_keys=[key])
        )
    text = healthy_ranges([key for keys in SECTIONS[name] for key in keys])
    return Section(
        name=name,
        panels=[*panels, interface.MarkdownPanel(markdown=text)],
        is_open=True,
        layout_settings=SectionLayoutSettings(columns=4, rows=-(-(len(panels) + 1) // 4)),
    )


def lines(key: str) -> list[str]:
    """Return the keys that are logged for a key of `SECTIONS`."""
    if not key.endswith("{0..9}"):
        return [key]
    return [key.replace("{0..9}", str(decile)) for decile in range(10)]


def _title(keys: list[str]) -> str:
    return ", ".join([keys[0], *(key.rpartition("/")[2] for key in keys[1:])])


def healthy_ranges(keys: list[str]) -> str:
    """Return a Markdown table of what metrics mean and which values are healthy."""
    rows = [f"| `{key}` | {define(key).meaning} | {define(key).healthy} |" for key in keys]
    return "\n".join(["| metric | meaning | healthy |", "|---|---|---|", *rows])
