//! Stubs of contract/, the unpacked atelier-protos.zip, in one tree of modules: stubs.rs. protox is
//! a compiler of protos in Rust, so that no protoc is needed.
use std::{error::Error, fs, path::Path};

fn protos(folder: &Path, found: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            protos(&path, found)?;
        } else {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = vec![];
    protos(Path::new("contract/protos"), &mut files)?;
    let described = protox::compile(files, ["contract/protos", "contract/imports"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .include_file("stubs.rs")
        .compile_fds(described)?;
    println!("cargo:rerun-if-changed=contract");
    Ok(())
}
