#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
// The functions are named and used as the documentation of the CUDA driver API says.
#![allow(non_snake_case, clippy::missing_safety_doc)]

mod api;
mod calls;
mod capture;
mod code;
mod device;
mod ffi;
mod image;
mod launch;
mod settings;
mod state;
mod work;
