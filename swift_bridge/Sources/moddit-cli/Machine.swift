import Foundation
import ModditCore

#if os(macOS)
import IOKit
import IOKit.ps
#endif

extension BenchmarkMachine {
    /// This machine.
    static func this() -> BenchmarkMachine {
        #if canImport(Darwin)
        BenchmarkMachine(
            chip: SystemFacts.text("machdep.cpu.brand_string") ?? "unknown", model: SystemFacts.text("hw.model"),
            gpuCores: SystemFacts.gpuCores,
            cpuCores: SystemFacts.number("hw.physicalcpu") ?? ProcessInfo.processInfo.processorCount,
            memoryBytes: Int(clamping: ProcessInfo.processInfo.physicalMemory), system: SystemFacts.name)
        #else
        BenchmarkMachine(
            chip: SystemFacts.line(of: "model name", in: "/proc/cpuinfo") ?? "unknown", model: nil, gpuCores: nil,
            cpuCores: ProcessInfo.processInfo.processorCount,
            memoryBytes: Int(clamping: ProcessInfo.processInfo.physicalMemory), system: SystemFacts.name)
        #endif
    }
}

extension BenchmarkConditions {
    /// This moment; "unknown" or nil for what the system does not tell.
    static func now() -> BenchmarkConditions {
        var load = 0.0
        let isKnown = getloadavg(&load, 1) == 1
        return BenchmarkConditions(
            powerSource: SystemFacts.powerSource, isLowPower: SystemFacts.isLowPower,
            thermalState: SystemFacts.thermalState, load: isKnown ? load : nil)
    }
}

extension ProcessPeak {
    /// This process's until now.
    static func this() -> ProcessPeak {
        #if canImport(Darwin)
        var usage = rusage()
        let isKnown = getrusage(RUSAGE_SELF, &usage) == 0
        return ProcessPeak(resident: isKnown ? Int(usage.ru_maxrss) : nil, footprint: SystemFacts.footprint)  // bytes
        #else
        let kibibytes = SystemFacts.line(of: "VmHWM", in: "/proc/self/status")?.split(separator: " ").first
        return ProcessPeak(resident: kibibytes.flatMap { Int($0) }.map { $0 * 1024 }, footprint: nil)
        #endif
    }
}

/// What the system says of itself.
///
/// What is for Apple's systems has not run yet: nobody has measured on a Mac.
private enum SystemFacts {
    #if canImport(Darwin)
    static func text(_ name: String) -> String? {
        var size = 0
        guard sysctlbyname(name, nil, &size, nil, 0) == 0, size > 1 else { return nil }
        var bytes = [UInt8](repeating: 0, count: size)
        guard sysctlbyname(name, &bytes, &size, nil, 0) == 0 else { return nil }
        let text = String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
        return text.isEmpty ? nil : text
    }

    static func number(_ name: String) -> Int? {
        var (number, size) = (Int32(0), MemoryLayout<Int32>.size)
        guard sysctlbyname(name, &number, &size, nil, 0) == 0, number > 0 else { return nil }
        return Int(number)
    }

    static var name: String {
        let version = ProcessInfo.processInfo.operatingSystemVersion
        let patch = version.patchVersion > 0 ? ".\(version.patchVersion)" : ""
        let number = "\(version.majorVersion).\(version.minorVersion)\(patch)"
        return "\(Graphs.currentSystem?.name ?? "Darwin") \(number)"
    }

    static var isLowPower: Bool? { ProcessInfo.processInfo.isLowPowerModeEnabled }

    static var thermalState: BenchmarkConditions.ThermalState {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: .nominal
        case .fair: .fair
        case .serious: .serious
        case .critical: .critical
        @unknown default: .unknown
        }
    }
    #else
    /// What stands behind a name and a colon.
    static func line(of name: String, in path: String) -> String? {
        guard let data = FileManager.default.contents(atPath: path) else { return nil }
        let lines = String(decoding: data, as: UTF8.self).split(separator: "\n")
        return lines.first { $0.hasPrefix(name) }?.split(separator: ":", maxSplits: 1).last
            .map { $0.trimmingCharacters(in: .whitespaces) }
    }

    static var name: String {
        let release = FileManager.default.contents(atPath: "/proc/sys/kernel/osrelease") ?? Data()
        return "Linux " + String(decoding: release, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
    }

    static let isLowPower: Bool? = nil
    static let thermalState = BenchmarkConditions.ThermalState.unknown
    #endif

    #if os(macOS)
    /// What the driver of Apple's GPUs says in the registry of devices.
    static var gpuCores: Int? {
        let service = IOServiceGetMatchingService(kIOMainPortDefault, IOServiceMatching("AGXAccelerator"))
        guard service != 0 else { return nil }
        defer { IOObjectRelease(service) }
        let property = IORegistryEntryCreateCFProperty(service, "gpu-core-count" as CFString, nil, 0)
        return property?.takeRetainedValue() as? Int
    }

    static var powerSource: BenchmarkConditions.PowerSource {
        guard let sources = IOPSCopyPowerSourcesInfo()?.takeRetainedValue() else { return .unknown }
        guard let kind = IOPSGetProvidingPowerSourceType(sources)?.takeUnretainedValue() else { return .unknown }
        switch kind as String {
        case "AC Power": return .mains
        case "Battery Power": return .battery
        default: return .unknown
        }
    }

    /// The largest `phys_footprint` that this process had.
    static var footprint: Int? {
        var info = rusage_info_v4()
        let status = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: rusage_info_t?.self, capacity: 1) {
                proc_pid_rusage(getpid(), RUSAGE_INFO_V4, $0)
            }
        }
        return status == 0 ? Int(clamping: info.ri_lifetime_max_phys_footprint) : nil
    }
    #else
    static let gpuCores: Int? = nil
    static let powerSource = BenchmarkConditions.PowerSource.unknown
    static let footprint: Int? = nil
    #endif
}
