//! Every seed of the tree, and what a fuzzer has added to `corpus/` here, through its target.

use std::fs;
use std::path::Path;

fn replay(target: &str, run: fn(&[u8])) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seeds = 0;
    for folder in ["seeds", "corpus"] {
        let Ok(files) = fs::read_dir(here.join(folder).join(target)) else { continue };
        for file in files {
            let path = file.expect("the folder can be read").path();
            let data = fs::read(&path).expect("the seed can be read");
            // Shown if it panics.
            println!("{}", path.display());
            run(&data);
            seeds += 1;
        }
    }
    assert!(seeds > 0, "{target} has no seeds");
}

#[test]
fn decode() {
    replay("decode", pyhv_fuzz::decode);
}

#[test]
fn recut() {
    replay("recut", pyhv_fuzz::recut);
}

#[test]
fn handshake() {
    replay("handshake", pyhv_fuzz::handshake);
}

#[test]
fn deflate() {
    replay("deflate", pyhv_fuzz::deflate);
}
