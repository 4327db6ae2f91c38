import Foundation

/// What a trial measured; a process of its own hands it to the benchmark as JSON.
package struct TrialReport: Sendable, Hashable {
    /// The stages that ran, each once.
    package let stages: [Stage]
    /// Of the placement by Core ML: device to how many there are. Empty where nobody can tell.
    package let operations: [String: Int]
    /// What a user should know.
    package let warnings: [String]

    /// One stage, each time it ran.
    package struct Stage: Sendable, Hashable {
        /// The stages of a function, in the order in which they run.
        package enum Name: String, Sendable, CaseIterable {
            /// The package is hashed, compiled and loaded, out of no cache of compiled models.
            case loadCold = "load_cold"
            /// It is loaded, compiled by another process before.
            case loadCached = "load_cached"
            /// The first call.
            case firstPredict = "first_predict"
            /// Each later call.
            case predict
        }

        /// Which.
        package let name: Name
        /// Each time it ran.
        package let seconds: [Double]
        /// Largest of the process until its end.
        package let peak: ProcessPeak

        var json: JSON {
            .object([
                "name": .string(name.rawValue), "seconds": .array(seconds.map { .number($0) }),
                "runtime_peak_bytes": .null,
                "process_peak_bytes": .optional(peak.resident) { .integer($0) },
                "footprint_peak_bytes": .optional(peak.footprint) { .integer($0) },
            ])
        }
    }

    init(stages: [Stage], operations: [String: Int] = [:], warnings: [String] = []) {
        self.stages = stages
        self.operations = operations
        self.warnings = warnings
    }
}

/// The largest memory of a process since its start, bytes; nil for what the system does not tell.
package struct ProcessPeak: Sendable, Hashable {
    /// Pages in memory.
    let resident: Int?
    /// What the system charges the process with (`phys_footprint`), on Apple's systems.
    package let footprint: Int?

    /// The larger of what is known: the footprint, or the pages in memory.
    package var bytes: Int? { footprint ?? resident }

    /// Tells what was read.
    package init(resident: Int?, footprint: Int?) {
        self.resident = resident
        self.footprint = footprint
    }
}

extension TrialReport {
    /// The text that a process hands over.
    package var text: String {
        JSON.object([
            "stages": .array(stages.map(\.json)), "operations": .dictionary(operations.mapValues { .integer($0) }),
            "warnings": .array(warnings.map { .string($0) }),
        ]).text
    }

    /// Reads what a process handed over.
    ///
    /// - Throws: `ModditError.format` for anything else.
    package init(_ data: Data) throws(ModditError) {
        let place = "report of a trial"
        let value = try JSON.parse(data, place: place, component: "benchmark")
        let object = try JSONObject(
            JSONField(value, place: place, component: "benchmark"), ["stages", "operations", "warnings"])
        let most = Stage.Name.allCases.count
        stages = try object["stages"].list(1...most) { item throws(ModditError) in try Stage(item) }
        var operations: [String: Int] = [:]
        let counts = try object["operations"].dictionary(0...Bounds.functions) { item throws(ModditError) in
            try item.integer(in: 0...Int.max)
        }
        for (name, count) in counts { operations[name.text] = count }
        self.operations = operations
        warnings = try object["warnings"].list(0...most) { item throws(ModditError) in try item.text(0...Bounds.text) }
    }
}

extension TrialReport.Stage {
    fileprivate init(_ field: JSONField) throws(ModditError) {
        let object = try JSONObject(
            field, ["name", "seconds", "runtime_peak_bytes", "process_peak_bytes", "footprint_peak_bytes"])
        name = try choice(object["name"])
        seconds = try object["seconds"].list(1...BenchmarkRecord.mostSamples) { item throws(ModditError) in
            try item.number(in: 0...1e5)
        }
        peak = ProcessPeak(
            resident: try object.optional("process_peak_bytes") { item throws(ModditError) in try item.integer() },
            footprint: try object.optional("footprint_peak_bytes") { item throws(ModditError) in try item.integer() })
    }
}

extension JSON {
    /// A value, or null.
    static func optional<Value>(_ value: Value?, _ write: (Value) -> JSON) -> JSON {
        value.map(write) ?? .null
    }
}
