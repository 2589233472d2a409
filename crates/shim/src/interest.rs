//! What a seat waits for.

use crate::output::Slot;
use holdfast_state::cri::Stream::{Stderr, Stdout};

/// One thing to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// A slot of the output pipeline.
    Output(Slot),
    /// A slot of the terminal's input pipeline.
    Input(Slot),
    /// A message.
    Control,
    /// The end of a process that is not our child.
    Process,
}

impl Wait {
    /// All there are, in the order in which the kernel looks: the control FIFO behind the input, so that
    /// input that is seen has not overtaken what was said there before it.
    pub(crate) const ALL: [Self; 8] = [
        Self::Output(Slot::Source(Stdout)),
        Self::Output(Slot::Source(Stderr)),
        Self::Output(Slot::Reader(Stdout)),
        Self::Output(Slot::Reader(Stderr)),
        Self::Input(Slot::Source(Stdout)),
        Self::Input(Slot::Reader(Stdout)),
        Self::Control,
        Self::Process,
    ];
}

/// What of it has come.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ready([bool; Wait::ALL.len()]);

impl Ready {
    /// By the places in [`Wait::ALL`].
    pub(crate) fn set(&mut self, index: usize) {
        if let Some(ready) = self.0.get_mut(index) {
            *ready = true;
        }
    }

    /// Whether there is anything to move.
    pub(crate) fn has_output_or_input(self) -> bool {
        Wait::ALL
            .into_iter()
            .any(|wait| matches!(wait, Wait::Output(_) | Wait::Input(_)) && self.has(wait))
    }

    pub(crate) fn has(self, wait: Wait) -> bool {
        Wait::ALL.into_iter().zip(self.0).any(|(other, ready)| other == wait && ready)
    }
}
