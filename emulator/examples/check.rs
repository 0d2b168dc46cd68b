//! Decodes every kernel of PTX files and names the first instruction of each that the emulator
//! does not know: `cargo run --example check -- FILE.ptx...`

use ptx_emulator::Module;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut bad = 0;
    for path in std::env::args().skip(1) {
        let module = Module::parse(&std::fs::read_to_string(&path)?)?;
        for kernel in module.kernels() {
            match module.check(kernel) {
                Ok(()) => println!("{path}: {kernel}: ok"),
                Err(fault) => {
                    bad += 1;
                    println!("{path}: {fault}");
                }
            }
        }
    }
    if bad > 0 {
        return Err(format!("{bad} kernels cannot run").into());
    }
    Ok(())
}
