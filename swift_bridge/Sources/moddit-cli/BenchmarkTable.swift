import Foundation
import ModditCore

/// What a record says, for people.
struct BenchmarkTable {
    private let record: BenchmarkRecord

    init(_ record: BenchmarkRecord) {
        self.record = record
    }

    /// The machine, warnings, and a line for each arm with medians.
    var text: String {
        let head = ["function", "on", "cold load s", "cached load s", "first s", "call s", "peak MB", "operations"]
        let rows = record.arms.indices.map { row($0) }
        return [record.machine.text, warning, "", table([head] + rows)].compactMap { $0 }.joined(separator: "\n")
    }

    private func row(_ arm: Int) -> [String] {
        let reports = record.trials.filter { $0.arm == arm }.map(\.report)
        let seconds = TrialReport.Stage.Name.allCases.map { name in
            let medians = reports.flatMap(\.stages).filter { $0.name == name }.map { Self.median($0.seconds) }
            return medians.isEmpty ? "-" : String(format: "%.4g", Self.median(medians))
        }
        let peak = reports.flatMap(\.stages).compactMap(\.peak.bytes).max()
        let operations = reports.last { !$0.operations.isEmpty }?.operations ?? [:]
        let devices = operations.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
        return [record.arms[arm].name, record.arms[arm].units.rawValue] + seconds + [
            peak.map { String(format: "%.1f", Double($0) / 1e6) } ?? "-",
            devices.isEmpty ? "unknown" : devices.joined(separator: ", "),
        ]
    }

    private var warning: String? {
        let moments = record.trials.flatMap { [$0.before, $0.after] }
        var found: [String] = []
        if moments.contains(where: { $0.powerSource == .battery }) { found.append("on battery") }
        if moments.contains(where: { $0.isLowPower == true }) { found.append("in low-power mode") }
        let hot = Set(moments.map(\.thermalState)).subtracting([.nominal, .unknown]).map(\.rawValue)
        if !hot.isEmpty { found.append("thermal state \(hot.sorted().joined(separator: ", "))") }
        return found.isEmpty ? nil : "warning: measured \(found.joined(separator: ", "))"
    }

    /// The middle of at least one value.
    private static func median(_ values: [Double]) -> Double {
        let sorted = values.sorted()
        let middle = sorted.count / 2
        return sorted.count % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
    }
}

extension BenchmarkMachine {
    fileprivate var text: String {
        let cores = gpuCores.map { "\($0) GPU cores" } ?? "\(cpuCores) CPU cores"
        return "\(chip.printable), \(cores), \(memoryBytes >> 30) GB, \(system.printable)"
    }
}
