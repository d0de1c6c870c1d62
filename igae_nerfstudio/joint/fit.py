"""Fitting new scenes in a latent space that was learnt before, with what its scenes share (3Da-AE, "exploitation").

    latent supervision    rendered against encoded latents; the encoder is frozen, every view encoded once
    RGB alignment         decoded renders against views; the scene and (of) the decoder

Both are stages of the joint trainer, with other weights and a frozen encoder. Each scene is fitted alone beside the
frozen basis, so scenes can be fitted anywhere and in any order; or, where `fit.train_shared` is set, all of them in one
training, the basis with them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from igae_nerfstudio.autoencoder.saving import save_autoencoder
from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder
from igae_nerfstudio.config_files import differing, to_plain
from igae_nerfstudio.console import log, progress_bar, warn
from igae_nerfstudio.errors import InputError, one_line
from igae_nerfstudio.files import job_folder
from igae_nerfstudio.joint import results
from igae_nerfstudio.joint.compositions import two_stages
from igae_nerfstudio.joint.config import ManyScenesConfig
from igae_nerfstudio.joint.objectives import LatentSupervision
from igae_nerfstudio.joint.results import LearntScene, SharedBasis, scene_state, write_json, write_scene
from igae_nerfstudio.joint.run_log import RunLog
from igae_nerfstudio.joint.scene_data import SceneData
from igae_nerfstudio.joint.trainer import Clock, Stage, Trainer
from igae_nerfstudio.metrics import ImageMetrics
from igae_nerfstudio.scenes.scene_folders import find_scenes
from igae_nerfstudio.scenes.scene_views import SceneViews
from igae_nerfstudio.scenes.view_schedule import ViewGroup

PHASES = {1: "latent_supervision", 2: "rgb_alignment"}
"""Names of the stages in result.json; RGB scenes have the first alone, which for them compares colours."""
HELD_OUT = "test"
"""The split that scenes are measured on."""
NEAREST_VIEWS, NEAREST_SCENES = 4, 100
"""Views of a new scene that look for the nearest training scene, and how many of these are looked at."""


class SceneFit:
    """The fitting of one scene, or of all scenes of a folder together with the basis.

    Args:
        config: settings.
        basis: learnt before.
        scenes_dir: folder of scenes.
        names: of the scenes in it.
        work_dir: for checkpoints; an unfinished fit in it goes on.
        quiet: no progress bars.
    """

    def __init__(
        self,
        config: ManyScenesConfig,
        basis: SharedBasis,
        scenes_dir: Path,
        names: Sequence[str],
        work_dir: Path,
        quiet: bool = True,
    ) -> None:
        from accelerate import Accelerator

        self.config, self.fit, self.clock = config, config.fit, Clock()
        self.basis = dataclasses.replace(basis, config=config)
        accelerator, stages = Accelerator(), config.for_new_scenes()
        self.model = model = self.basis.make_model().to(accelerator.device)
        tuned = self.fit.fine_tuned_decoder if stages.stage2.epochs and stages.stage2.decoder_lr else "none"
        self.fine_tuned = fine_tuned_weights(model.autoencoder, tuned)
        for name, weight in model.autoencoder.named_parameters():
            weight.requires_grad_(name.removeprefix("module.") in self.fine_tuned)
        model.shared.requires_grad_(self.fit.train_shared)
        cache, data = work_dir / "cache", config.data
        open_views = partial(SceneViews.open, scenes_dir, data.view_size, only=list(names), quiet=True)
        views = open_views(cache / "views", "train", basis.background, limit_views=data.max_views)
        views.check_cameras(config.triplanes.half_extent)
        self.held_out = open_views(cache / "held_out", HELD_OUT, basis.background)
        self.data = SceneData(model, views, cache, basis.sha256[:8])
        plan = two_stages(stages, self.data, ("Latent supervision", "RGB alignment"), after=self.measure_stage)
        self.run_log = RunLog(work_dir)
        run_log = self.run_log if accelerator.is_main_process else None
        self.trainer = Trainer(
            stages, model, self.data, plan, work_dir, accelerator, run_log, self.measure_curve, self.clock, quiet
        )

    def run(self) -> None:
        """Fit, or go on with it; normalisation, preview and background are the basis's."""

        def begin(trainer: Trainer) -> None:
            with trainer.timed(0):
                trainer.fill_codes(self.start_code)

        self.trainer.run(begin)

    @torch.no_grad()
    def start_code(self, scene: int) -> Tensor:
        """Where a scene starts (L,), as `fit.start` says."""
        if self.fit.start == "noise":
            return self.trainer.noise_code(scene)
        if self.fit.start == "mean":
            return self.basis.mean_record
        self.model.renderer.eval()
        if self.fit.start == "prior":
            return self.code_of_prior(scene)
        count = self.data.counts[scene]
        views = tuple(sorted({i * count // NEAREST_VIEWS for i in range(NEAREST_VIEWS)}))
        batch, objective = self.data.batch([ViewGroup(scene, views)]), LatentSupervision(plane_tv=0.0)

        def distance(code: Tensor) -> float:
            """Between a code's renders and this scene's latents."""
            batch.planes = self.model.shared(code[None].to(self.data.device))
            return float(objective(self.model, batch)["latent"])

        return min(chain([self.basis.mean_record], self.basis.training_codes(NEAREST_SCENES)), key=distance)

    def code_of_prior(self, scene: int) -> Tensor:
        """The planes (L,) that the basis's prior makes of a few views of the scene.

        Raises:
            InputError: the basis is not the result of `igae prior train`.
        """
        from igae_nerfstudio.prior.saved import PRIOR_FILE, SavedPrior
        from igae_nerfstudio.prior.training import few_views

        if not (self.basis.folder / PRIOR_FILE).is_file():
            raise InputError(
                f"fit.start is prior, and {self.basis.folder} has no {PRIOR_FILE}; pass the --output-dir of "
                "`igae prior train` as --shared, or choose another fit.start"
            )
        prior = SavedPrior.load(self.basis.folder).scenes.to(self.data.device)
        return prior.scene(prior.encoder(*few_views(self.data, scene, NEAREST_VIEWS)).mean)[0].flatten()

    def state(self, scene: int) -> dict[str, Any]:
        """A scene as `scene.pt` would hold it now; renderer and decoder are its own unless all are fitted together."""
        parts: dict[str, dict[str, Tensor]] = {"renderer": {}, "decoder": {}}
        if not self.fit.train_shared:
            if any(stage.settings.renderer_lr for stage in self.trainer.stages):
                parts["renderer"] = self.model.renderer.state_dict()
            weights = self.model.autoencoder.state_dict()
            parts["decoder"] = {name: weights[f"module.{name}"] for name in sorted(self.fine_tuned)}
        code = self.data.codes.load([scene])[0]
        return scene_state(self.held_out.names[scene], code, self.model, self.config, **parts)

    def measure(self, scene: int, limit: int | None = None) -> dict[str, float]:
        """Metrics on held-out views of the scene as it would be stored now."""
        return measure(LearntScene.of(self.state(scene), self.model), self.held_out, scene, limit)

    def measure_stage(self, trainer: Trainer) -> None:
        """After a stage, a line of metrics for each scene."""
        if trainer.main and trainer.step:
            for scene in range(self.held_out.num_scenes):
                self.run_log.numbers(trainer.number, trainer.step, {"scene": scene, **self.measure(scene)})

    def measure_curve(self, trainer: Trainer, stage: Stage, step: int) -> None:
        """Every `steps_per_validation` steps, a line with the times and `held_out_psnr` of the first scene."""
        if self.fit.steps_per_validation and step % self.fit.steps_per_validation == 0:
            metrics = {f"held_out_{name}": x for name, x in self.measure(0, self.fit.validation_views).items()}
            times = {name: float(value.sum()) for name, value in self.clock.named_buffers()}
            self.run_log.numbers(stage.number, step, {**times, **metrics})

    def write_results(self, output_dir: Path) -> None:
        """`scenes/NAME/` of every scene, `result.json` last; with a basis of their own where it learnt too."""
        basis, names = self.basis, self.held_out.names
        if self.fit.train_shared:
            if self.config.space == "latent":
                save_autoencoder(output_dir / "autoencoder", self.model.autoencoder.module)
            basis = SharedBasis.of(self.model, self.config, self.data.codes, names, output_dir)
            basis.save()
        clock = {name: value / len(names) for name, value in self.clock.named_buffers()}
        lines = [json.loads(line) for line in self.run_log.path.read_text().splitlines()]
        for scene, name in enumerate(names):
            folder, phases = output_dir / "scenes" / name, {}
            for line in (line for line in lines if line.get("scene") == scene):
                times = {key: float(value[line["stage"]]) for key, value in clock.items()}
                metrics = {key: value for key, value in line.items() if key not in ("stage", "step", "scene")}
                phases[PHASES[line["stage"]]] = {**metrics, "steps": line["step"], **times}
            sizes = write_scene(folder, self.state(scene), basis.folder, basis.sha256)
            result = {
                "name": name,
                "views": self.data.counts[scene],
                "held_out_views": self.held_out.num_views(scene),
                **phases,
                **{key: float(value.sum()) for key, value in clock.items()},
                "bytes": {**sizes, "total": sum(sizes.values())},
                "bytes_on_disk": (folder / results.SCENE_FILE).stat().st_size,
                "curve": [line for line in lines if "held_out_psnr" in line] if scene == 0 else [],
                "shared_sha256": basis.sha256,
            }
            write_json(folder / results.RESULT_FILE, result)


METRICS = ImageMetrics()


def measure(learnt: LearntScene, views: SceneViews, scene: int, limit: int | None = None) -> dict[str, float]:
    """Means of PSNR in dB, SSIM and LPIPS on the views of a scene, at most `limit` of them, evenly spread."""
    number = views.num_views(scene)
    count = number if limit is None else min(limit, number)
    rows = torch.tensor([i * number // count for i in range(count)])
    of_scene = torch.full_like(rows, scene)
    pairs = zip(learnt.images(views.cameras(of_scene, rows)).cpu(), views.images(of_scene, rows))
    each = [METRICS(image.permute(1, 2, 0), photo.permute(1, 2, 0)) for image, photo in pairs]
    return {name: sum(metrics[name] for metrics in each) / count for name in each[0]}


def fine_tuned_weights(autoencoder: TrainableAutoencoder, which: str) -> set[str]:
    """Names, within `autoencoder.module`, of the decoder's weights that a scene fine-tunes and stores.

    A whole decoder (`all`) would outweigh a scene's planes many times. The layers that see the largest inputs in a
    decoding (`outer`) have few weights, and it is they that turn features into colours.
    """
    if which == "none":
        return set()
    decoder = {id(weight) for weight in autoencoder.parameters_of("decoder")}
    names = {name for name, weight in autoencoder.module.named_parameters() if id(weight) in decoder}
    if which == "all":
        return names
    sides: dict[str, int] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and inputs[0].dim() == 4:  # norms may see channels last: the second last side is one in both
                sides[name] = max(sides.get(name, 0), inputs[0].shape[-2])

        return layer.register_forward_pre_hook(note)

    layers = {name.rpartition(".")[0] for name in names}
    handles = [watch(name, layer) for name, layer in autoencoder.module.named_modules() if name in layers]
    device = next(autoencoder.parameters()).device
    with torch.no_grad():
        autoencoder.decode(torch.zeros(1, autoencoder.latent_channels, 4, 4, device=device))
    for handle in handles:
        handle.remove()
    return {name for name in names if sides.get(name.rpartition(".")[0]) == max(sides.values())}


# --- A job of many scenes ---


@dataclass(frozen=True)
class SceneTask:
    """One scene to fit: all that a process needs that sees the same folders."""

    scene: Path
    """Folder of its views."""
    shared: Path
    """Folder of the shared basis."""
    output_dir: Path
    """Of the job: the scene goes to `scenes/NAME`, its checkpoints to `work/NAME`."""
    config: ManyScenesConfig

    @property
    def result_path(self) -> Path:
        """There if and only if the scene is fitted."""
        return self.output_dir / "scenes" / self.scene.name / results.RESULT_FILE


Outcome = tuple[str, str | None]
"""A scene's name, and why it was not fitted, in one line; None: it was."""
RunAll = Callable[[Sequence[SceneTask]], Generator[Outcome, None, None]]
"""Runs tasks anywhere, in any order, and yields each outcome when it is known. Closed before, it stops the others."""


@dataclass
class Report:
    """Scenes that a job fitted now, those that it found fitted, and reasons by failed scene."""

    learnt: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def fit_scene(task: SceneTask) -> None:
    """Fit one scene, or go on with it. A finished one is not fitted again."""
    if not task.result_path.exists():
        work = task.output_dir / "work" / task.scene.name
        fit = SceneFit(task.config, SharedBasis.load(task.shared), task.scene.parent, [task.scene.name], work)
        fit.run()
        fit.write_results(task.output_dir)
        shutil.rmtree(work, ignore_errors=True)


def run_task(task: SceneTask) -> Outcome:
    """`fit_scene`, with a failure as an outcome: one scene that cannot be fitted does not stop the others."""
    try:
        fit_scene(task)
    except Exception as error:
        return task.scene.name, one_line(error)
    return task.scene.name, None


def one_after_another(tasks: Sequence[SceneTask]) -> Generator[Outcome, None, None]:
    """All tasks in this process."""
    return (run_task(task) for task in tasks)


def find_tasks(scenes: Sequence[Path], shared: Path, output_dir: Path, config: ManyScenesConfig) -> list[SceneTask]:
    """The tasks of a job: one for each scene in the folders.

    Raises:
        InputError: a folder holds no scene, or two scenes have one name.
    """
    found: dict[str, Path] = {}
    for scene in (scene for folder in scenes for scene in find_scenes(folder, "train")):
        if scene.name in found:
            raise InputError(f"two scenes are named '{scene.name}': {found[scene.name]} and {scene}; rename one")
        found[scene.name] = scene
    names = list(found)[: config.data.max_scenes]
    return [SceneTask(found[name].resolve(), shared.resolve(), output_dir.resolve(), config) for name in names]


def fit_scenes(
    scenes: Sequence[Path],
    shared: Path,
    output_dir: Path,
    config: ManyScenesConfig | None = None,
    run_all: RunAll = one_after_another,
) -> Report:
    """Fit all scenes of some folders; called again, it goes on where it stopped.

    Args:
        scenes: folders of scenes.
        shared: result of a joint training (`train_scenes`).
        output_dir: receives scenes/NAME/scene.pt and result.json.
        config: settings; None: those of the joint training.
        run_all: how tasks are run.

    Raises:
        InputError: basis, settings or folders cannot be used, or another process works in `output_dir`. A single
            scene's problem is in the report.
        KeyboardInterrupt: ctrl-C; finished scenes and the last step of the present one are kept.
    """
    basis = SharedBasis.load(shared)
    config = config or basis.config
    config.check()
    tasks = find_tasks(scenes, shared, output_dir, config)
    with job_folder(output_dir):
        _check_same_job(output_dir, config, basis)
        report = Report(found=[task.scene.name for task in tasks if task.result_path.exists()])
        missing = [task for task in tasks if task.scene.name not in report.found]
        if config.fit.train_shared and missing:
            _fit_together(tasks, basis, output_dir, config)
            report.learnt = [task.scene.name for task in missing]
        elif missing:
            with progress_bar("Scenes") as progress, closing(run_all(missing)) as outcomes:
                bar = progress.add_task("", total=len(tasks), completed=len(report.found))
                for name, error in outcomes:
                    if error is None:
                        report.learnt.append(name)
                    else:
                        report.failed[name] = error
                    progress.advance(bar)
    return report


def _fit_together(tasks: list[SceneTask], basis: SharedBasis, output_dir: Path, config: ManyScenesConfig) -> None:
    folders = {task.scene.parent for task in tasks}
    if len(folders) > 1:
        raise InputError(f"fit.train_shared needs all scenes in one folder, and these are in {len(folders)}")
    work, names = output_dir / "work" / "all-scenes", [task.scene.name for task in tasks]
    fit = SceneFit(config, basis, folders.pop(), names, work, quiet=False)
    fit.run()
    if fit.trainer.main:
        fit.write_results(output_dir)
        shutil.rmtree(work, ignore_errors=True)


def _check_same_job(output_dir: Path, config: ManyScenesConfig, basis: SharedBasis) -> None:
    """A folder holds scenes of one basis and of the same settings; the first call writes them down."""
    path, settings = output_dir / "job.json", to_plain(config)
    if not path.exists():
        return write_json(path, {"shared_sha256": basis.sha256, "settings": settings})
    before = json.loads(path.read_text(encoding="utf-8"))
    names = differing(results.as_named_now(before["settings"]), settings, default=to_plain(ManyScenesConfig()))
    names = [name for name in names if name != "data.max_scenes"]
    if names or before["shared_sha256"] != basis.sha256:
        what = f"other settings ({', '.join(names)})" if names else f"another shared basis than {basis.folder}"
        raise InputError(f"the scenes in {output_dir} were fitted with {what}; use the same, or another --output-dir")


def log_report(report: Report, output_dir: Path) -> None:
    """What came out, and the failed scenes with their reasons."""
    numbers = f"{len(report.learnt)} learnt, {len(report.found)} there already, {len(report.failed)} failed"
    log(f"Scenes: {numbers}, in {output_dir}")
    for name, reason in sorted(report.failed.items()):
        warn(f"failed: {name}: {reason}")
