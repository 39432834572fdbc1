//! Options of commands that decode with experts from disk.

use clap::{Args, ValueEnum};
use shardwright_runtime::LookAhead;

/// Whether experts are read ahead.
#[derive(Clone, Copy, Debug, Args)]
pub struct AheadArgs {
    /// Guess the experts of the next layer, and read them while nothing else is to be read; `auto`: while that
    /// makes tokens faster. The text stays the same
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = LookAheadArg::Auto)]
    pub look_ahead: LookAheadArg,
}

/// When experts are read ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum LookAheadArg {
    Off,
    On,
    Auto,
}

impl From<AheadArgs> for LookAhead {
    fn from(args: AheadArgs) -> Self {
        match args.look_ahead {
            LookAheadArg::Off => Self::Off,
            LookAheadArg::On => Self::On,
            LookAheadArg::Auto => Self::Auto,
        }
    }
}
