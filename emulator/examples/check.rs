//! Lists the kernels of PTX files and whether the emulator can run them: `check file.ptx ...`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut failed = 0;
    for path in std::env::args().skip(1) {
        let module = ptx_emulator::Module::parse(&std::fs::read_to_string(&path)?)?;
        for kernel in module.kernels() {
            match module.check(&kernel.name) {
                Ok(()) => println!(
                    "{path}: {}: {} bytes of parameters, {} of static shared memory",
                    kernel.name, kernel.param_bytes, kernel.static_shared
                ),
                Err(fault) => {
                    failed += 1;
                    println!("{path}: {fault}");
                }
            }
        }
    }
    if failed > 0 {
        return Err(format!("{failed} kernels cannot run").into());
    }
    Ok(())
}
