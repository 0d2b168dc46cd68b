//! Arguments that several programs have.

use clap::ValueEnum;
use flash_alibi::Horizon;

/// `--horizon`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HorizonArgument {
    /// Every key is computed.
    Off,
    /// Keys that weigh less than 2^-24 of a row together are left out.
    Certified,
    /// Keys whose weights underflow to 0 are left out.
    Bitwise,
}

impl From<HorizonArgument> for Horizon {
    fn from(argument: HorizonArgument) -> Self {
        match argument {
            HorizonArgument::Off => Self::Off,
            HorizonArgument::Certified => Self::default(),
            HorizonArgument::Bitwise => Self::Bitwise,
        }
    }
}
