//! The lifecycle of one container process, as a function: `step(state, input) → (state, actions)`.
//!
//! The function is pure: it opens nothing, waits for nothing and has no clock, so property tests
//! can check it over every order of inputs. The [watch task](crate::watch) passes the inputs to it
//! and performs the actions.
//!
//! ```text
//!             created                 start                     process gone
//!  Creating ───────────▶ Live{Created} ─────▶ Live{Running} ──────────────────▶ Exiting
//!     │ shim gone            │                   │      ▲ pause, resume            │
//!     ▼                      │ recorded          │      ▼                          │ recorded, or
//!  Abandoned                 │                   │  Live{Paused}                   │ found and recorded
//!                            └──────────────▶ Stopped ◀───────────────────────────┘
//! ```

use holdfast_state::{EventKind, ExitRecord, Launch, OrphanPolicy};

/// The state of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// The shim and the runtime are creating the process.
    Creating,
    /// There is a process.
    Live {
        /// What it does.
        activity: Activity,
        /// Whether it has its shim.
        shim: Shim,
    },
    /// The process has exited. The supervisor waits for its exit status, or looks for it.
    Exiting {
        /// What it did before.
        activity: Activity,
        /// Whether it has its shim.
        shim: Shim,
    },
    /// The process has exited, and this is its exit status. Final.
    Stopped(ExitRecord),
    /// The start has failed, and what was left of it has been removed. Final.
    Abandoned,
}

/// What a live process does. The activities whose names end in -ing last while a runtime command
/// runs. If its result is unknown, the runtime is asked for the state of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It waits for its start.
    Created,
    /// The runtime was called to start it.
    Starting,
    /// Its program runs.
    Running,
    /// The runtime was called to freeze it.
    Pausing,
    /// It is frozen.
    Paused,
    /// The runtime was called to thaw it.
    Resuming,
}

/// A change of the activity that the runtime performs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Start,
    Pause,
    Resume,
}

impl Change {
    /// Returns the activities before, during and after the change.
    pub(crate) fn path(self) -> [Activity; 3] {
        match self {
            Self::Start => [Activity::Created, Activity::Starting, Activity::Running],
            Self::Pause => [Activity::Running, Activity::Pausing, Activity::Paused],
            Self::Resume => [Activity::Paused, Activity::Resuming, Activity::Running],
        }
    }

    /// Returns the events that are published at the beginning and at the end of the change.
    fn events(self) -> [EventKind; 2] {
        match self {
            Self::Start => [EventKind::Starting, EventKind::Started],
            Self::Pause => [EventKind::Pausing, EventKind::Paused],
            Self::Resume => [EventKind::Resuming, EventKind::Resumed],
        }
    }
}

impl Activity {
    /// Returns the change that is in progress.
    pub(crate) fn change(self) -> Option<Change> {
        match self {
            Self::Starting => Some(Change::Start),
            Self::Pausing => Some(Change::Pause),
            Self::Resuming => Some(Change::Resume),
            Self::Created | Self::Running | Self::Paused => None,
        }
    }
}

/// Whether a process has its shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shim {
    Present,
    /// The shim died, and another one is taking over; the number counts the attempts.
    Adopting(u8),
    /// The shim died, and the supervisor watches the process alone.
    Gone,
}

/// How many adopters in a row may die before the last output of an exited process is given up. For
/// a live process there is always a next attempt, after a pause that its watch task chooses,
/// because nobody else reads its output.
const ADOPTERS: u8 = 5;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// The runtime has created the process, and the supervisor holds its pidfd.
    Created {
        /// The pid in the host's pid namespace.
        pid: i32,
    },
    /// This exit record is on disk. No exit is published before that.
    Recorded(ExitRecord),
    /// The exit FIFO reported a hang-up.
    ShimGone,
    /// A new shim has taken over.
    Adopted,
    /// The pidfd reports that the process is a zombie or was reaped.
    ProcessGone,
    /// The time that the shim had to record the exit has passed.
    GraceOver,
    /// The best evidence available gives this exit record.
    Found(ExitRecord),
    /// The runtime is about to be called for this change. No other change is in progress.
    Begin(Change),
    /// The runtime has performed the change.
    Done,
    /// The runtime has not performed the change.
    NotDone,
    /// The OOM killer killed a process of the container.
    OutOfMemory,
    /// A checkpoint of the container was written.
    Checkpointed,
    /// The start has failed, for this reason.
    Failed(String),
    /// What was left of a failed start has been removed.
    Cleared,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Append the event to the journal, then publish it to all listeners.
    Publish(EventKind),
    /// Give the shim some time to record the exit, then pass the input `GraceOver`.
    AwaitRecord,
    /// Look for the exit status on disk and in the kernel, then pass the input `Found`.
    FindEnding,
    /// Write the exit record to disk, because there is no shim that would, then pass the input
    /// `Recorded`.
    RecordExit(ExitRecord),
    /// Kill the process that has lost its shim (the policy of containerd's 2016 shim).
    KillOrphan,
    /// Start a shim that takes over, then pass the input `Adopted`, or `ShimGone` if it cannot.
    Adopt,
    /// Find the reason of the failed start, remove what is left of it, then pass the input
    /// `Cleared`.
    ClearAway,
}

/// The properties of a process that never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nature {
    pub(crate) launch: Launch,
    pub(crate) on_orphan: OrphanPolicy,
}

/// Returns the next state and the actions. An input that has no meaning in a state changes nothing.
pub(crate) fn step(nature: Nature, state: &State, input: Input) -> (State, Vec<Action>) {
    use Activity::{Created, Running, Starting};
    match (state, input) {
        (State::Creating, Input::Created { pid }) => {
            let mut actions = vec![Action::Publish(EventKind::Created { pid })];
            let activity = if nature.launch.starts_at_once() {
                actions.push(Action::Publish(EventKind::Started));
                Running
            } else {
                Created
            };
            (State::Live { activity, shim: Shim::Present }, actions)
        }
        // A process on disk that has an exit record, but no pid.
        (State::Creating, Input::Recorded(record)) => {
            let actions = publish_exit(Activity::Running, &record);
            (State::Stopped(record), actions)
        }
        (State::Creating, Input::ShimGone) => (State::Creating, vec![Action::ClearAway]),
        (State::Creating, Input::Failed(reason)) => {
            (State::Creating, vec![Action::Publish(EventKind::StartFailed { reason })])
        }
        (State::Creating, Input::Cleared) => (State::Abandoned, vec![]),

        (State::Live { activity, shim }, Input::Begin(change)) if change.path()[0] == *activity => {
            let [begun, _] = change.events();
            let activity = change.path()[1];
            (State::Live { activity, shim: *shim }, vec![Action::Publish(begun)])
        }
        (State::Live { activity, shim }, input @ (Input::Done | Input::NotDone)) => {
            match (activity.change(), input) {
                (Some(change), Input::Done) => {
                    let [_, done] = change.events();
                    let activity = change.path()[2];
                    (State::Live { activity, shim: *shim }, vec![Action::Publish(done)])
                }
                (Some(change), _) => {
                    (State::Live { activity: change.path()[0], shim: *shim }, vec![])
                }
                (None, _) => (state.clone(), vec![]),
            }
        }
        (State::Exiting { activity: Starting, shim }, Input::Done) => (
            State::Exiting { activity: Running, shim: *shim },
            vec![Action::Publish(EventKind::Started)],
        ),
        (State::Live { .. } | State::Exiting { .. }, Input::OutOfMemory) => {
            (state.clone(), vec![Action::Publish(EventKind::OutOfMemory)])
        }
        (State::Live { .. } | State::Exiting { .. }, Input::Checkpointed) => {
            (state.clone(), vec![Action::Publish(EventKind::Checkpointed)])
        }

        (State::Live { activity, shim }, Input::ProcessGone) => {
            let next = State::Exiting { activity: *activity, shim: *shim };
            let action = match shim {
                Shim::Present | Shim::Adopting(_) => Action::AwaitRecord,
                Shim::Gone => Action::FindEnding,
            };
            (next, vec![action])
        }

        (
            State::Live { activity, .. } | State::Exiting { activity, .. },
            Input::Recorded(record),
        ) => {
            let actions = publish_exit(*activity, &record);
            (State::Stopped(record), actions)
        }

        (State::Live { activity, shim }, Input::ShimGone) => {
            let (shim, actions) = shim_gone(nature, *shim, None);
            (State::Live { activity: *activity, shim }, actions)
        }
        // The last output may still be in the pipes, so an exited process is adopted too.
        (State::Exiting { activity, shim }, Input::ShimGone) => {
            let (shim, mut actions) = match (nature.on_orphan, shim) {
                (OrphanPolicy::Adopt, shim) => shim_gone(nature, *shim, Some(ADOPTERS)),
                (OrphanPolicy::Kill, _) => (Shim::Gone, vec![]),
            };
            if shim == Shim::Gone {
                actions.push(Action::FindEnding);
            }
            (State::Exiting { activity: *activity, shim }, actions)
        }
        (State::Live { activity, shim: Shim::Adopting(_) }, Input::Adopted) => (
            State::Live { activity: *activity, shim: Shim::Present },
            vec![Action::Publish(EventKind::Adopted)],
        ),
        (State::Exiting { activity, shim: Shim::Adopting(_) }, Input::Adopted) => (
            State::Exiting { activity: *activity, shim: Shim::Present },
            vec![Action::Publish(EventKind::Adopted)],
        ),
        (State::Exiting { .. }, Input::GraceOver) => (state.clone(), vec![Action::FindEnding]),

        (State::Live { .. } | State::Exiting { .. }, Input::Found(record)) => {
            (state.clone(), vec![Action::RecordExit(record)])
        }

        _ => (state.clone(), vec![]),
    }
}

/// Returns what follows from the death of a shim. `ShimLost` is published only once. But if the
/// supervisor died before it killed or adopted the process, it does so now. An adopter that dies
/// before it has begun is followed by another one: without a reader, what is in the pipes is lost.
fn shim_gone(nature: Nature, shim: Shim, most: Option<u8>) -> (Shim, Vec<Action>) {
    let mut actions = Vec::new();
    if shim == Shim::Present {
        actions.push(Action::Publish(EventKind::ShimLost));
    }
    match (nature.on_orphan, shim) {
        (OrphanPolicy::Kill, _) => {
            actions.push(Action::KillOrphan);
            (Shim::Gone, actions)
        }
        (OrphanPolicy::Adopt, Shim::Adopting(attempt))
            if most.is_some_and(|most| attempt >= most) =>
        {
            (Shim::Gone, actions)
        }
        (OrphanPolicy::Adopt, shim) => {
            actions.push(Action::Adopt);
            let attempt =
                if let Shim::Adopting(attempt) = shim { attempt.saturating_add(1) } else { 1 };
            (Shim::Adopting(attempt), actions)
        }
    }
}

/// Returns the events of an exit. A process that exited while the runtime was starting it counts as
/// started, so `Started` is published before `Exited`.
fn publish_exit(activity: Activity, record: &ExitRecord) -> Vec<Action> {
    let exited = record.event();
    match activity {
        Activity::Starting => vec![Action::Publish(EventKind::Started), Action::Publish(exited)],
        _ => vec![Action::Publish(exited)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_state::{Evidence, ExitStatus};
    use proptest::prelude::*;

    fn inputs() -> impl Strategy<Value = Input> {
        let record = |evidence| ExitRecord::now(ExitStatus::Code(7), evidence);
        prop_oneof![
            Just(Input::Created { pid: 5 }),
            Just(Input::Recorded(record(Evidence::Shim))),
            Just(Input::Found(record(Evidence::Pidfd))),
            Just(Input::ShimGone),
            Just(Input::Adopted),
            Just(Input::ProcessGone),
            Just(Input::GraceOver),
            prop_oneof![Just(Change::Start), Just(Change::Pause), Just(Change::Resume)]
                .prop_map(Input::Begin),
            Just(Input::Done),
            Just(Input::NotDone),
            Just(Input::OutOfMemory),
            Just(Input::Checkpointed),
            Just(Input::Cleared),
        ]
    }

    fn natures() -> impl Strategy<Value = Nature> {
        (
            proptest::sample::select(vec![
                Launch::Create,
                Launch::Run,
                Launch::Exec,
                Launch::Restore,
            ]),
            prop_oneof![Just(OrphanPolicy::Adopt), Just(OrphanPolicy::Kill)],
        )
            .prop_map(|(launch, on_orphan)| Nature { launch, on_orphan })
    }

    fn run(nature: Nature, inputs: Vec<Input>) -> (State, Vec<Action>) {
        let mut state = State::Creating;
        let mut all = Vec::new();
        for input in inputs {
            let (next, actions) = step(nature, &state, input);
            if matches!(state, State::Stopped(_) | State::Abandoned) {
                assert_eq!((&next, actions.len()), (&state, 0), "a final state changed");
            }
            state = next;
            all.extend(actions);
        }
        (state, all)
    }

    fn position(actions: &[Action], wanted: impl Fn(&EventKind) -> bool) -> Vec<usize> {
        let is = |action: &Action| matches!(action, Action::Publish(kind) if wanted(kind));
        actions.iter().enumerate().filter(|(_, action)| is(action)).map(|(at, _)| at).collect()
    }

    proptest! {
        #[test]
        fn an_exit_is_told_once_and_last_and_every_start_before_it(
            nature in natures(), inputs in proptest::collection::vec(inputs(), 0..40))
        {
            let (state, actions) = run(nature, inputs);
            let created = position(&actions, |kind| matches!(kind, EventKind::Created { .. }));
            let started = position(&actions, |kind| matches!(kind, EventKind::Started));
            let exited = position(&actions, |kind| matches!(kind, EventKind::Exited { .. }));
            prop_assert!(created.len() <= 1 && started.len() <= 1 && exited.len() <= 1);
            prop_assert_eq!(exited.len() == 1, matches!(state, State::Stopped(_)));
            if let Some(exit) = exited.first() {
                prop_assert_eq!(*exit, actions.len() - 1);
                prop_assert!(created.iter().all(|create| create < exit));
            }
            if let Some(start) = started.first() {
                prop_assert!(created[0] < *start);
            }
        }

        #[test]
        fn a_lost_shim_loses_no_exit(nature in natures(), mut inputs in proptest::collection::vec(inputs(), 0..20)) {
            // Whatever came before: once the process, the shim and the adopters are gone, someone
            // looks for the exit status; what is found is written to disk; and then the state is
            // `Stopped`.
            inputs.insert(0, Input::Created { pid: 5 });
            inputs.push(Input::ProcessGone);
            inputs.extend((0..=ADOPTERS).map(|_| Input::ShimGone));
            let (_, actions) = run(nature, inputs.clone());
            let asked = actions.contains(&Action::FindEnding)
                || actions.iter().any(|action| matches!(action, Action::Publish(EventKind::Exited { .. })));
            prop_assert!(asked);
            let record = ExitRecord::now(ExitStatus::Code(1), Evidence::Pidfd);
            inputs.push(Input::Found(record.clone()));
            let (state, actions) = run(nature, inputs.clone());
            let writes = actions.last() == Some(&Action::RecordExit(record.clone()));
            prop_assert!(writes || matches!(state, State::Stopped(_)));
            inputs.push(Input::Recorded(record));
            let (state, _) = run(nature, inputs);
            prop_assert!(matches!(state, State::Stopped(_)), "{:?}", state);
        }
    }

    #[test]
    fn an_exit_during_the_start_is_told_after_the_start() {
        let record = ExitRecord::now(ExitStatus::Code(0), Evidence::Shim);
        let nature = Nature { launch: Launch::Create, on_orphan: OrphanPolicy::Adopt };
        let inputs = vec![
            Input::Created { pid: 5 },
            Input::Begin(Change::Start),
            Input::ProcessGone,
            Input::Recorded(record.clone()),
            Input::Done,
        ];
        let (state, actions) = run(nature, inputs);
        assert_eq!(state, State::Stopped(record));
        let events: Vec<_> = actions.iter().filter(|a| matches!(a, Action::Publish(_))).collect();
        assert!(
            matches!(
                events[..],
                [
                    Action::Publish(EventKind::Created { .. }),
                    Action::Publish(EventKind::Starting),
                    Action::Publish(EventKind::Started),
                    Action::Publish(EventKind::Exited { .. }),
                ]
            ),
            "{events:?}"
        );
    }

    #[test]
    fn the_seeds_policy_kills_an_orphan_and_the_default_does_not() {
        for (on_orphan, killed) in [(OrphanPolicy::Kill, true), (OrphanPolicy::Adopt, false)] {
            let nature = Nature { launch: Launch::Run, on_orphan };
            let (_, actions) = run(nature, vec![Input::Created { pid: 5 }, Input::ShimGone]);
            assert_eq!(actions.contains(&Action::KillOrphan), killed);
        }
    }

    const ADOPT: Nature = Nature { launch: Launch::Create, on_orphan: OrphanPolicy::Adopt };
    const KILL: Nature = Nature { launch: Launch::Create, on_orphan: OrphanPolicy::Kill };

    fn found() -> ExitRecord {
        ExitRecord::now(ExitStatus::Code(7), Evidence::Pidfd)
    }

    /// What comes of each input in turn, for a process that has been created.
    fn follow<const N: usize>(nature: Nature, inputs: [Input; N]) -> (State, [Vec<Action>; N]) {
        let (mut state, _) = step(nature, &State::Creating, Input::Created { pid: 5 });
        let actions = inputs.map(|input| {
            let (next, actions) = step(nature, &state, input);
            state = next;
            actions
        });
        (state, actions)
    }

    #[test]
    fn a_change_is_told_when_it_begins_and_when_it_is_done() {
        for (launch, at_once) in [
            (Launch::Create, false),
            (Launch::Run, true),
            (Launch::Exec, true),
            (Launch::Restore, true),
        ] {
            let (_, actions) = run(Nature { launch, ..ADOPT }, vec![Input::Created { pid: 5 }]);
            assert_eq!(actions[0], Action::Publish(EventKind::Created { pid: 5 }));
            let started = [Action::Publish(EventKind::Started)];
            assert_eq!(actions[1..], started[..usize::from(at_once)], "{launch:?}");
        }
        let mut inputs = vec![Input::Created { pid: 5 }];
        for change in [Change::Start, Change::Pause, Change::Resume] {
            inputs.extend([Input::Begin(change), Input::Done]);
        }
        let (state, actions) = run(ADOPT, inputs);
        let events = [
            EventKind::Created { pid: 5 },
            EventKind::Starting,
            EventKind::Started,
            EventKind::Pausing,
            EventKind::Paused,
            EventKind::Resuming,
            EventKind::Resumed,
        ];
        assert_eq!(actions, events.map(Action::Publish));
        assert_eq!(state, State::Live { activity: Activity::Running, shim: Shim::Present });
    }

    #[test]
    fn a_change_begins_only_where_its_path_does_and_leads_back_if_it_is_not_done() {
        use Activity::{Created, Paused, Pausing, Resuming, Running, Starting};
        for activity in [Created, Starting, Running, Pausing, Paused, Resuming] {
            let at = |activity| State::Live { activity, shim: Shim::Present };
            for (change, from, meanwhile) in [
                (Change::Start, Created, Starting),
                (Change::Pause, Running, Pausing),
                (Change::Resume, Paused, Resuming),
            ] {
                let (begun, actions) = step(ADOPT, &at(activity), Input::Begin(change));
                if activity == from {
                    assert_eq!((&begun, actions.len()), (&at(meanwhile), 1));
                    let back = step(ADOPT, &begun, Input::NotDone);
                    assert_eq!(back, (at(from), vec![]), "{change:?}");
                } else {
                    assert_eq!((begun, actions), (at(activity), vec![]), "{change:?}");
                }
            }
            if activity.change().is_none() {
                for input in [Input::Done, Input::NotDone] {
                    assert_eq!(step(ADOPT, &at(activity), input), (at(activity), vec![]));
                }
            }
        }
    }

    #[test]
    fn a_start_that_came_to_nothing_is_cleared_away_and_tells_no_exit() {
        let (state, actions) = run(ADOPT, vec![Input::ShimGone, Input::Cleared]);
        assert_eq!((state, actions), (State::Abandoned, vec![Action::ClearAway]));
        // It is on disk as ended, though nobody saw it live.
        let (state, actions) = run(ADOPT, vec![Input::Recorded(found())]);
        assert!(matches!(state, State::Stopped(_)));
        let [Action::Publish(EventKind::Exited { status, .. })] = actions[..] else {
            panic!("{actions:?}");
        };
        assert_eq!(status, ExitStatus::Code(7));
    }

    #[test]
    fn who_lives_is_adopted_however_often_the_adopters_die() {
        let mut inputs = vec![Input::Created { pid: 5 }];
        inputs.extend((0..300).map(|_| Input::ShimGone));
        inputs.push(Input::Adopted);
        let (state, actions) = run(ADOPT, inputs);
        assert_eq!(state, State::Live { activity: Activity::Created, shim: Shim::Present });
        assert_eq!(actions[1], Action::Publish(EventKind::ShimLost));
        assert_eq!(actions[2..302], vec![Action::Adopt; 300]);
        assert_eq!(actions[302..], [Action::Publish(EventKind::Adopted)]);
    }

    #[test]
    fn who_has_ended_is_adopted_for_its_last_output_a_few_times() {
        let mut inputs = vec![Input::Created { pid: 5 }, Input::ProcessGone];
        inputs.extend((0..ADOPTERS).map(|_| Input::ShimGone));
        let (_, actions) = run(ADOPT, inputs.clone());
        assert_eq!(actions[1..3], [Action::AwaitRecord, Action::Publish(EventKind::ShimLost)]);
        assert_eq!(actions[3..], vec![Action::Adopt; ADOPTERS.into()]);
        inputs.push(Input::ShimGone);
        let (state, actions) = run(ADOPT, inputs.clone());
        assert_eq!(actions.last(), Some(&Action::FindEnding));
        assert_eq!(state, State::Exiting { activity: Activity::Created, shim: Shim::Gone });
        // Of these, the last one stays.
        inputs.pop();
        inputs.push(Input::Adopted);
        let (state, actions) = run(ADOPT, inputs);
        assert_eq!(actions.last(), Some(&Action::Publish(EventKind::Adopted)));
        assert_eq!(state, State::Exiting { activity: Activity::Created, shim: Shim::Present });
    }

    #[test]
    fn who_is_not_to_be_adopted_is_killed_while_it_lives_and_only_looked_for_afterwards() {
        let (state, actions) = follow(KILL, [Input::ShimGone, Input::Adopted, Input::ProcessGone]);
        let lost = vec![Action::Publish(EventKind::ShimLost), Action::KillOrphan];
        assert_eq!(actions, [lost, vec![], vec![Action::FindEnding]]);
        assert_eq!(state, State::Exiting { activity: Activity::Created, shim: Shim::Gone });
        let (_, actions) = follow(KILL, [Input::ProcessGone, Input::ShimGone]);
        assert_eq!(actions, [vec![Action::AwaitRecord], vec![Action::FindEnding]]);
    }

    #[test]
    fn an_ending_is_looked_for_when_the_shims_time_is_over_and_written_down_when_found() {
        let inputs = [
            Input::GraceOver,
            Input::ProcessGone,
            Input::GraceOver,
            Input::Found(found()),
            Input::Recorded(found()),
            Input::GraceOver,
        ];
        let (state, actions) = follow(ADOPT, inputs);
        assert!(matches!(state, State::Stopped(_)));
        assert_eq!(actions[..2], [vec![], vec![Action::AwaitRecord]]);
        assert_eq!(actions[2], [Action::FindEnding]);
        assert!(
            matches!(&actions[3][..], [Action::RecordExit(record)] if record.status == found().status)
        );
        assert!(matches!(actions[4][..], [Action::Publish(EventKind::Exited { .. })]));
        assert_eq!(actions[5], []);
    }

    #[test]
    fn what_happens_beside_the_life_of_a_process_is_told_as_long_as_it_has_not_stopped() {
        for (input, event) in [
            (Input::OutOfMemory, EventKind::OutOfMemory),
            (Input::Checkpointed, EventKind::Checkpointed),
        ] {
            let told = [Action::Publish(event)];
            let again = || input.clone();
            assert_eq!(step(ADOPT, &State::Creating, again()), (State::Creating, vec![]));
            let recorded = Input::Recorded(found());
            let (_, actions) =
                follow(ADOPT, [again(), Input::ProcessGone, again(), recorded, again()]);
            assert_eq!((&actions[0][..], &actions[2][..]), (&told[..], &told[..]));
            assert_eq!(actions[4], []);
        }
    }

    #[test]
    fn a_start_that_is_done_after_the_end_is_told_then_and_once() {
        let inputs = [
            Input::Begin(Change::Start),
            Input::ProcessGone,
            Input::Done,
            Input::Done,
            Input::Recorded(found()),
        ];
        let (_, actions) = follow(ADOPT, inputs);
        assert_eq!(actions[2..4], [vec![Action::Publish(EventKind::Started)], vec![]]);
        assert!(matches!(actions[4][..], [Action::Publish(EventKind::Exited { .. })]));
    }
}
