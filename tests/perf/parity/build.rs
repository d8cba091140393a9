//! Links ISA-L for comparison where its development files are installed.

use std::path::Path;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(isal)");
    let directories = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib"];
    for directory in directories {
        if Path::new(directory).join("libisal.so").exists() {
            println!("cargo::rustc-link-search=native={directory}");
            println!("cargo::rustc-link-lib=dylib=isal");
            println!("cargo::rustc-cfg=isal");
            return;
        }
    }
}
