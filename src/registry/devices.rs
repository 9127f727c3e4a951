//! Where models run, and in which numbers.

use crate::config;
use crate::error::{Error, Result};
use crate::kernels::{self, Device, Format};
use candle_core::DType;
use std::time::Instant;

/// The devices that the configuration names, GPUs once they have computed what the CPU does.
pub fn named(server: &config::Server) -> Result<Vec<Device>> {
    let names = device_names(&server.device)?;
    let devices = names.iter().map(|name| Device::named(name)).collect::<Result<Vec<_>>>()?;
    if server.dtype == "int8" && !devices.iter().all(Device::is_cpu) {
        let reason = "dtype 'int8' is for CPUs; on a GPU take bfloat16 or float16, or serve with --device cpu";
        return Err(Error::Config(reason.into()));
    }
    let dtype = format(server)?.dtype();
    let trust = |(name, device): (&str, Device)| {
        // Where kernels are emulated it would take longer than all the rest.
        if !server.self_test || device.is_cpu() || device.is_emulated() {
            return Ok(device);
        }
        let tried = tried(&device, server.threads, dtype);
        trusted(name, device, tried)
    };
    names.into_iter().zip(devices).map(trust).collect()
}

/// Holds a GPU to the CPU in what models of a type ask of it.
fn tried(device: &Device, threads: usize, dtype: DType) -> Result<()> {
    let began = Instant::now();
    // What follows a model's body may be of f32 whatever that is.
    let wanted = [(dtype, ""), (DType::F32, "product")];
    let operations = kernels::verify(device, threads, if dtype == DType::F32 { &wanted[..1] } else { &wanted })?;
    let ms = began.elapsed().as_millis() as u64;
    tracing::info!(%device, operations, ms, "the GPU computes what the CPU does");
    Ok(())
}

/// A device that was tried. Where it failed and was not asked for, it is the CPU.
fn trusted(name: &str, device: Device, tried: Result<()>) -> Result<Device> {
    match tried {
        Ok(()) => Ok(device),
        Err(reason) if name == "auto" => {
            tracing::warn!(%device, %reason, "no GPU is used; the CPU is");
            Ok(Device::Cpu)
        }
        Err(reason) => Err(Error::Config(format!("device '{name}': {reason}"))),
    }
}

/// The devices of a list. Several are GPUs, of which none comes twice: on a CPU other bits would answer under one tag.
fn device_names(list: &str) -> Result<Vec<&str>> {
    let devices: Vec<&str> = list.split(',').map(str::trim).collect();
    let is_alone = |device: &&str| ["auto", "cpu"].contains(device);
    let number = |device: &str| match device.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse::<usize>().ok(),
    };
    let is_same = |one: &str, other: &str| number(one).is_some_and(|one| number(other) == Some(one));
    let is_again = |place: usize| devices[..place].iter().any(|before| is_same(before, devices[place]));
    match devices.as_slice() {
        [_] => Ok(devices),
        several if several.iter().any(is_alone) => {
            Err(Error::Config(format!("device '{list}': several must be GPUs, each by its number")))
        }
        several if (0..several.len()).any(is_again) => Err(Error::Config(format!("device '{list}': one comes twice"))),
        _ => Ok(devices),
    }
}

/// The number format that the configuration names for a base's matrices.
pub fn format(server: &config::Server) -> Result<Format> {
    const SUPPORTED: [(&str, Format); 4] = [
        ("float32", Format::Float32),
        ("bfloat16", Format::Bfloat16),
        ("float16", Format::Float16),
        ("int8", Format::Int8),
    ];
    let named = SUPPORTED.iter().find(|(name, _)| *name == server.dtype);
    named.map(|(_, format)| *format).ok_or_else(|| {
        let names = SUPPORTED.map(|(name, _)| name).join(", ");
        Error::Config(format!("dtype '{}' is not supported; supported: {names}", server.dtype))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_fails_is_left_for_the_cpu_only_where_nobody_asked_for_it() {
        let tried = || Err(Error::Config("rotate is off".into()));
        assert!(trusted("auto", Device::Cpu, tried()).unwrap().is_cpu());
        let error = trusted("cuda:1", Device::Cpu, tried()).unwrap_err().to_string();
        assert_eq!(error, "device 'cuda:1': rotate is off");
    }

    #[test]
    fn a_list_names_each_gpu_once_whatever_it_calls_it() {
        assert_eq!(device_names("cuda:0, cuda:1").unwrap(), ["cuda:0", "cuda:1"]);
        assert_eq!(device_names("auto").unwrap(), ["auto"]);
        for list in ["cuda:1,cuda:1", "cuda,cuda:0", "cuda:2,cuda:1,cuda:02"] {
            assert!(device_names(list).unwrap_err().to_string().ends_with("one comes twice"), "{list}");
        }
        for list in ["auto,cuda:1", "cuda:0,cpu"] {
            assert!(device_names(list).unwrap_err().to_string().contains("several must be GPUs"), "{list}");
        }
    }
}
