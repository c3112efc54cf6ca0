"""`Training`: a run and its stages, clone, PPO, report; each can be interrupted and taken up again.

What another project would want to import lives in other rooms of `sam_gym`; this file only puts it in order.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecMonitor
from tqdm import tqdm

from sam_gym._utils.fetching import atomic_path, write_json
from sam_gym._utils.progress import progress_bar
from sam_gym._utils.stopwatch import Stopwatch
from sam_gym.envs.base import EngineVectorEnv
from sam_gym.envs.keeping import BEST_PREDICTED
from sam_gym.envs.rewards import parse_reward
from sam_gym.evaluation import encode_images, evaluate, evaluate_entries
from sam_gym.evaluation.records import Record
from sam_gym.prompters import baselines
from sam_gym.sb3 import ALGORITHMS, BoxPolicy, Cloner, CloneSettings, ModelPrompter, SamVecEnv, load_model, save_agent
from sam_gym.sb3.recalibrating import RecalibratingSettings, RecalibrationCallback, Recalibrator
from sam_gym.training.beside import judged, train_shared_judge, train_shared_sketcher
from sam_gym.training.learning import PPOProgress
from sam_gym.training.recipe import evaluation_kwargs, model_arguments, module_of, train_kwargs
from sam_gym.training.report import write_report
from sam_gym.training.state import begin, resume
from sam_gym.training.tracking import callbacks_of, finish, tracked

if TYPE_CHECKING:
    from sam_gym.training.arguments import Arguments


class Training:
    """One run: its folder, its state on disk, its environments and its model.

    Args:
        folder: Folder of the run.
        state: What `state.json` holds: arguments, hyper-parameters, stage, learning curve, best model so far.
    """

    def __init__(self, folder: Path, state: dict[str, Any]) -> None:
        self.folder, self.state = folder, state
        arguments, config = state["arguments"], state["config"]
        self.seed = arguments["seed"]
        names = ("data", "checkpoint", "device", "precision", "attention", "clip")
        self.settings = {name: arguments[name] for name in names}
        self.bar: tqdm | None = None
        set_random_seed(self.seed)
        reward = {} if arguments.get("reward") is None else {"reward": arguments["reward"]}
        train = self._environment("train", "SameStep", config["n_envs"], **{**train_kwargs(config), **reward})
        seen = {**evaluation_kwargs(config), **reward}
        self.val = self._environment("val", "Disabled", self._together("eval_objects"), **seen)
        self.recalibrator: Recalibrator | None = None
        if "recalibration" in config:
            self.recalibrator = Recalibrator(train, RecalibratingSettings(**config["recalibration"]), self.seed)
            if (folder / "recalibration.pt").is_file():
                self.recalibrator.resume(folder / "recalibration.pt")
            assert self.val.labeler is not None, "both environments have the same labeler"
            self.val.labeler.use(self.recalibrator.module)
        encode_images(train.backend, [train.data, self.val.data])
        self.train = train
        self.venv = SamVecEnv(train, reward_scale=config["reward_scale"])
        self.model = self._new_model()

    @classmethod
    def open(cls, arguments: Arguments) -> Training:
        """Begin a run, or take up the one in `arguments.resume`."""
        if arguments.resume is not None:
            return cls(*tracked(*resume(arguments)))
        run = cls(*tracked(*begin(arguments)))
        run._save_state()
        return run

    def close(self) -> None:
        """End what other services were told of the run."""
        finish(self.state)

    def watch(self, stage: str) -> Stopwatch:
        """Where the time of a stage goes, all its interruptions counted together."""
        return Stopwatch(self.state["timing"].setdefault(stage, {}))

    # ------------------------------------------------------------------- stages

    def clone(self) -> None:
        """Fit the policy to the oracle on the training split."""
        settings = CloneSettings(**self.state["config"]["clone"])
        if self.state["stage"] != "clone":
            return
        self._warm_up()
        if "sketch" in self.state["config"]:
            train_shared_sketcher(self)
        if settings.total_timesteps == 0:
            self._enter("ppo")
            return
        rounds = self.folder / "clone_rounds"
        config = self.state["config"]
        policy: Any = self.model.policy
        cloner = Cloner(
            policy, self.train, settings, rounds,
            seed=self.seed, gamma=config["gamma"], reward_scale=config["reward_scale"],
        )  # fmt: skip
        if cloner.rounds == cloner.total_rounds:  # interrupted between the last round and its evaluation
            self._note("clone", cloner.timesteps, force=True)
        size = settings.round_steps * self.train.num_envs
        watch = self.watch("clone")
        with self._told("cloning", cloner.total_rounds * size, cloner.timesteps) as bar, ExitStack() as timed:
            for owner, method, part in (
                (self.train, "step", "environment"), (self.train, "reset", "environment"),
                (cloner.teacher, "label", "teacher"), (cloner.teacher, "own", "policy"),
            ):  # fmt: skip
                timed.enter_context(watch.of(owner, method, part))
            started = time.perf_counter()

            def after_round(_: Cloner, losses: dict[str, float]) -> None:
                nonlocal started
                seconds = time.perf_counter() - started
                self.state["seconds"]["clone"] += seconds
                watch.known["seconds"] += seconds
                watch.known["steps"] += size
                watch.rest("fits")
                for name, value in losses.items():
                    self.model.logger.record(f"clone/{name}", value)
                self.model.logger.dump(cloner.timesteps)
                measure = cloner.teacher.measure
                bar.set_postfix_str(f"{measure.replace('_', ' ')} {losses[measure]:.3f}", refresh=False)
                bar.update(size)
                self._note("clone", cloner.timesteps, force=cloner.rounds == cloner.total_rounds)
                self._save_state()
                started = time.perf_counter()

            cloner.run(after_round)
        self._tell("cloning", "clone", "states")
        self.save_model("clone.zip")
        self._enter("ppo")
        shutil.rmtree(rounds)

    def _warm_up(self) -> None:
        """Train the recalibration module, if there is one, with random clicks before there is an agent."""
        recalibrator = self.recalibrator
        if recalibrator is None or recalibrator.warmed_up >= recalibrator.settings.warm_up:
            return
        with progress_bar("module", recalibrator.settings.warm_up, "step", done=recalibrator.warmed_up) as bar:

            def after_step(trained: Recalibrator, loss: float) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()
                if trained.warmed_up % 10 == 0 or trained.warmed_up == trained.settings.warm_up:
                    trained.store(self.folder / "recalibration.pt")

            recalibrator.warm_up(after_step)

    def ppo(self) -> None:
        """Go on with MaskablePPO; the best model on the validation split, the clone included, is kept."""
        total = self.state["config"]["n_timesteps"]
        if self.state["stage"] != "ppo":
            return
        checkpoint = self.folder / "checkpoint.zip"
        done = 0
        if checkpoint.is_file():
            self.model = self.load(checkpoint)
            done = self.model.num_timesteps
            environments = self.model.get_env()
            assert environments is not None, "it was loaded with them"
            environments.seed(self.seed + done)  # new episodes, not those that the run began with
        elif (self.folder / "clone.zip").is_file():
            self.model.policy.load_state_dict(self.load(self.folder / "clone.zip").policy.state_dict())
        if self.state["config"].get("anchored"):
            policy: Any = self.model.policy
            policy.stay_near(self.load(self.folder / "clone.zip").policy)
        if done < total:
            watch = self.watch("ppo")
            with (
                self._told("PPO", total, done) as bar,
                watch.of(self.train, "step", "rollout/environment"),
                watch.of(self.train, "reset", "rollout/environment"),
            ):
                callbacks = [PPOProgress(self, bar, watch), *callbacks_of(self.state)]
                if self.recalibrator is not None:
                    callbacks.append(RecalibrationCallback(self.recalibrator))
                self.model.learn(total - done, callback=callbacks, reset_num_timesteps=done == 0)
            self._tell("PPO", "ppo", "steps")
            self._note("ppo", self.model.num_timesteps, force=True)
        if self.state["best"] is None:  # no training at all was asked for
            self._note("ppo", 0, force=True)
        self._choose_stop()
        self._tell("validation", "validation", "masks")
        self._enter("judge" if "judge" in self.state["config"] else "report")

    def judge(self) -> None:
        """Train what tells good masks from bad ones, where the recipe asks for it."""
        if self.state["stage"] == "judge":
            train_shared_judge(self)
            self._enter("report")

    def save_checkpoint(self) -> None:
        """Between two rollouts of PPO: what --resume goes on from, and validation if it is time to."""
        self.save_model("checkpoint.zip")
        if self.recalibrator is not None:
            self.recalibrator.store(self.folder / "recalibration.pt")
        self._note("ppo", self.model.num_timesteps)
        self._save_state()

    def report(self) -> None:
        """Evaluate on the held-out split and write table, pictures and record."""
        started = time.perf_counter()
        self.keep()
        agent = ModelPrompter(self.load(self.folder / "model.zip"))
        entries = baselines(self.train.settings)
        if (self.folder / "clone.zip").is_file() and self.recalibrator is None:  # else the module was another one then
            entries["clone alone"] = ModelPrompter(self.load(self.folder / "clone.zip"))
        entries["agent"] = agent
        config = self.state["config"]
        kwargs = evaluation_kwargs(config, self.folder / "model.zip")
        kwargs |= {"attention": "full", "precision": "exact"}  # as published, however it was trained
        test = self._environment("test", "Disabled", self._together("test_objects"), **kwargs)
        objects, watch = self.state["arguments"]["test_objects"], self.watch("table")
        try:
            with self._decoding(test, watch):
                records = evaluate_entries(entries, test, self.folder / "evaluations", objects)
                if "judge" in config:
                    keeping = self._environment("test", "Disabled", test.num_envs, returns=BEST_PREDICTED, **kwargs)
                    records += evaluate_entries(judged(entries), keeping, self.folder / "evaluations", objects)
        finally:  # Ctrl-C too: what was measured is kept, and so is what it took
            self._save_state()
        self._tell("held-out table", "table", "masks")
        pictures = self._environment("test", "Disabled", 1, render_mode="rgb_array", **kwargs)
        self.state["seconds"]["report"] += time.perf_counter() - started
        write_report(self.folder, self.title, records, agent, pictures, self.state)
        best = self.state["best"]
        print(f"agent: the {best['stage']} model after {best['timesteps']} steps of that stage, validation gain "
              f"{best['gain']:+.3f}")  # fmt: skip
        self._enter("done")

    @property
    def title(self) -> str:
        """Over tables and pictures: which environment, which pixels."""
        data = self.train.data
        arguments = self.state["arguments"]
        stand_in = "" if data.source == data.name else f", STAND-IN DATA {data.source}"
        mark = f", {self.mark}" if self.mark else ""
        return f"{arguments['env']}, {arguments['checkpoint']}, seed {arguments['seed']}{stand_in}{mark}"

    @property
    def mark(self) -> str:
        """What is said wherever results of this run are shown, if anything."""
        return "QUICK RUN, NO RESULT" if self.state["quick"] else ""

    def keep(self) -> str:
        """Make model.zip the best model so far, or the current one if none was evaluated yet; says which."""
        best = self.folder / "best.zip"
        if best.is_file():
            for file in filter(Path.is_file, (best, module_of(best))):
                with atomic_path(self.folder / f"model{file.suffix}") as path:
                    path.write_bytes(file.read_bytes())
            kept = self.state["best"]
            return f"model.zip is the {kept['stage']} model after {kept['timesteps']} steps"
        self.save_model("model.zip")
        return "model.zip is the model as it stands; it was not evaluated yet"

    # ------------------------------------------------------------------- pieces

    def _choose_stop(self) -> None:
        """Choose on the validation split which moves the best model leaves unmade, if it is one that moves boxes."""
        model = self.load(self.folder / "best.zip")
        if not isinstance(model.policy, BoxPolicy):
            return
        gains, returns = {}, {}
        with progress_bar("choosing when to stop", len(model.policy.stop_choices), "value") as bar:
            for value in model.policy.stop_choices:
                model.policy.stop_below.fill_(value)
                record = self._validate(model)
                gains[value], returns[value] = record.gain.mean, float(record.returns.mean())
                bar.update()
        chosen_by = returns if self._blind else gains
        best = max(chosen_by, key=lambda value: chosen_by[value])
        model.policy.stop_below.fill_(best)
        self.model = model
        self.save_model("best.zip")
        self.state["best"] = {**self.state["best"], "gain": gains[best], "stop_below": best}
        tqdm.write(f"moves all within {best:g} are not made: validation gain {gains[best]:+.3f}, "
                   f"from {min(gains.values()):+.3f} with another value")  # fmt: skip

    @property
    def _blind(self) -> bool:
        """Whether rewards are of no truth: who trains without truths does not choose by them either."""
        return set(parse_reward(self.train.settings.reward)) == {"clip"}

    def _validate(self, model: PPO | MaskablePPO) -> Record:
        objects = self.state["arguments"]["eval_objects"]
        with self._decoding(self.val, self.watch("validation")):
            return evaluate(ModelPrompter(model), self.val, name="validation", max_objects=objects, progress=False)

    @contextmanager
    def _decoding(self, env: EngineVectorEnv, watch: Stopwatch) -> Iterator[None]:
        """Time an evaluation: SAM's encoder, its decoder, and all else."""
        before = env.backend.masks_decoded
        try:
            with watch.running(), ExitStack() as timed:
                for method, part in (("encode", "encoder"), ("decode", "decoder"), ("decode_windows", "decoder")):
                    timed.enter_context(watch.of(env.backend, method, part))
                yield
        finally:
            watch.known["steps"] += env.backend.masks_decoded - before
            watch.rest("prompters and measuring")

    @contextmanager
    def _told(self, name: str, total: int, done: int) -> Iterator[tqdm]:
        """The bar of a stage, which also says when the agent is validated."""
        with progress_bar(name, total, "step", done=done) as self.bar:
            yield self.bar
        self.bar = None

    def _together(self, objects: str) -> int:
        """Episodes at a time where so many objects are evaluated: spare ones would be decoded for nothing."""
        return int(min(self.state["config"]["n_envs"], self.state["arguments"][objects] or math.inf))

    def _environment(self, split: str, autoreset_mode: str, n: int, **more: Any) -> EngineVectorEnv:
        return gymnasium.make_vec(
            self.state["arguments"]["env"], num_envs=n, vectorization_mode="vector_entry_point",
            split=split, autoreset_mode=autoreset_mode, **{**self.settings, **more},
        )  # type: ignore[return-value]  # fmt: skip

    def _new_model(self) -> PPO | MaskablePPO:
        config = self.state["config"]
        algorithm: Any
        algorithm, policy = ALGORITHMS[config["policy"]]
        arguments = model_arguments(config)
        model = algorithm(policy, VecMonitor(self.venv), seed=self.seed, device=self.settings["device"], **arguments)
        model.set_logger(configure(str(self.folder / "tensorboard"), ["tensorboard"]))
        return model

    def load(self, file: Path) -> PPO | MaskablePPO:
        """A saved model, to act and learn in this run's environment."""
        space = self.train.single_action_space
        model = load_model(file, space, env=VecMonitor(self.venv), device=self.settings["device"])
        model.set_logger(self.model.logger)
        return model

    def _tell(self, name: str, stage: str, unit: str) -> None:
        watch = self.watch(stage)
        if watch.known["steps"]:  # else it was done before an interruption, by a version that did not count
            tqdm.write(watch.line(name, unit))

    def save_model(self, name: str) -> None:
        """Save the present model, and the module beside it, in the run's folder."""
        save_agent(self.model, self.folder / name, self.train)
        if self.recalibrator is not None:
            self.recalibrator.module.save(module_of(self.folder / name))

    def _save_state(self) -> None:
        write_json(self.folder / "state.json", self.state)

    def _enter(self, stage: str) -> None:
        self.state["stage"] = stage
        self._save_state()

    def _note(self, stage: str, timesteps: int, *, force: bool = False) -> None:
        """Evaluate on the validation split if it is time to, and remember the model if it is the best so far."""
        config, arguments = self.state["config"], self.state["arguments"]
        total = config["clone"]["total_timesteps"] if stage == "clone" else config["n_timesteps"]
        mine = [p for p in self.state["points"] if p["stage"] == stage]
        last = mine[-1]["stage_timesteps"] if mine else 0
        if not force and timesteps - last < total / arguments["evaluations"] or mine and last == timesteps:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(f"validating on {arguments['eval_objects']} objects")
        record = self._validate(self.model)
        gain = record.gain.mean
        before = config["clone"]["total_timesteps"] if stage == "ppo" else 0
        self.state["points"].append(
            {"stage": stage, "stage_timesteps": timesteps, "timesteps": before + timesteps, "gain": gain,
             "final_iou": float(record.curve[-1]), "return": float(record.returns.mean())}
        )  # fmt: skip
        self.model.logger.record("validation/iou_gain", gain)
        self.model.logger.record("validation/final_iou", float(record.curve[-1]))
        self.model.logger.record("validation/return", float(record.returns.mean()))
        self.model.logger.dump(before + timesteps)
        best = self.state["best"]
        if best is None or self._blind or gain > best["gain"]:  # blind: the newest model counts as the best
            self.save_model("best.zip")
            self.state["best"] = {"stage": stage, "timesteps": timesteps, "gain": gain}
        self._save_state()
        tqdm.write(f"{stage:>6} {timesteps:>6} steps: validation IoU {record.curve[0]:.3f} -> {record.curve[-1]:.3f} "
                   f"(gain {gain:+.3f}, {record.prompts.mean():.1f} prompts)")  # fmt: skip
