//! The functions of the CUDA driver API. What they do is in its documentation.

mod context;
mod launch;
mod memory;
mod missing;
mod module;
mod occupancy;
mod stream;
mod tensor_map;

/// Exported functions that count their calls. A body is of type [`Result`](crate::code::Result).
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        #[doc = concat!("`", stringify!($name), "` of the CUDA driver API.")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $crate::code::Code {
            $crate::calls::count(stringify!($name));
            let body = || -> $crate::code::Result { $body };
            body().into()
        }
    )*};
}
use api;
